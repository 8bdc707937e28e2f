"""One sound command in a folder of its own, to be spoilt; and what came of running it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from llama.adapters import peft_format
from llama.commands.benchmark.command import benchmark
from llama.commands.chat.command import chat
from llama.commands.combine import combine
from llama.commands.data.command import show_data
from llama.commands.doctor.command import doctor
from llama.commands.doctor.options import DoctorOptions
from llama.commands.evaluate.command import evaluate
from llama.commands.export.command import export
from llama.commands.generate import generate
from llama.commands.plan.command import plan
from llama.commands.report import report
from llama.commands.verify.command import verify
from llama.model.config import PART_OF, ModelConfig
from llama.settings import (
    BenchmarkOptions,
    ChatOptions,
    CombineOptions,
    DataOptions,
    EvaluateOptions,
    ExportOptions,
    GenerateOptions,
    LoRAOptions,
    PlanOptions,
    ReportOptions,
    TrainOptions,
    VerifyOptions,
)
from llama.settings.options import run_command
from llama.train.loop import train
from tests.support.model_files import random_state, write_meta
from tests.support.model_files import write_gguf as write_gguf_model
from tests.support.tiny_runs import CONFIG, deepspeed_json, write_json, write_model, write_rows

COMMANDS: dict[str, tuple[Callable[..., int], Any]] = {
    "train": (train, TrainOptions),
    "generate": (generate, GenerateOptions),
    "chat": (chat, ChatOptions),
    "evaluate": (evaluate, EvaluateOptions),
    "export": (export, ExportOptions),
    "benchmark": (benchmark, BenchmarkOptions),
    "data": (show_data, DataOptions),
    "verify": (verify, VerifyOptions),
    "doctor": (doctor, DoctorOptions),
    "plan": (plan, PlanOptions),
    "report": (report, ReportOptions),
    "combine": (combine, CombineOptions),
}
_OF_A_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "CUDA_VISIBLE_DEVICES",
)
_OF_OTHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MV2_", "JOB_COMPLETION_INDEX")


def launched(rank: int, count: int) -> dict[str, str]:
    """What a launcher tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


class Setting:
    """Sound files and arguments; every path is relative to `folder`, where the command runs."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.command = command
        self.more: list[str] = []
        self.environment: dict[str, str] = {}
        self.patches: list[Any] = []
        self.options = {
            "train": {
                "deepspeed": "ds.json",
                "model": "model",
                "data": "rows.json",
                "output_dir": "out",
                "template": "chatml",
            },
            "generate": {
                "model": "model",
                "prompt": "a",
                "adapter": "adapter",
                "max_new_tokens": "4",
            },
            "chat": {"model": "model", "max_new_tokens": "4"},
            "evaluate": {"model": "model", "data": "rows.json"},
            "export": {
                "model": "model",
                "adapter": "adapter",
                "format": "hf",
                "output_dir": "out",
            },
            "data": {"model": "model", "data": "rows.json"},
            "benchmark": {"model": "model", "deepspeed": "ds.json"},
            "verify": {"model": "model", "deepspeed": "ds.json"},
            "doctor": {"hostfile": "hosts"},
            "plan": {"model": "model", "deepspeed": "ds.json", "gpu": "h100-80gb"},
            "report": {"runs": "finished"},
            "combine": {"model": "model", "output_dir": "both"},
        }[command]

    def arguments(self) -> list[str]:
        pairs = ((f"--{name}", value) for name, value in self.options.items())
        return [*(word for pair in pairs for word in pair), *self.more]

    def path(self, name: str) -> Path:
        return self.folder / name

    def edit_json(self, name: str, **changes: Any) -> None:
        """Set fields of a JSON object, dots written `__`; Ellipsis removes one."""
        document = json.loads(self.path(name).read_text())
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            section = document
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
            if value is ...:
                del section[last]
        self.path(name).write_text(json.dumps(document))

    def edit_rows(self, *changes: tuple[int, Any]) -> None:
        """Replace rows of rows.json, numbered from 1 as messages do."""
        rows = json.loads(self.path("rows.json").read_text())
        for number, row in changes:
            rows[number - 1] = row
        self.path("rows.json").write_text(json.dumps(rows))


@dataclass(frozen=True)
class Case:
    """One mistake: what the page calls it, how to make it, and what each line must hold."""

    name: str
    spoil: Callable[[Setting], object]
    says: tuple[str, ...]
    """A decisive piece of every line, in order; docs/bad_inputs.md has the lines whole."""
    command: str = "train"
    loads: bool = False
    """Whether what is wrong shows in the weights alone, which therefore may be read."""


@dataclass
class Outcome:
    """What a command did."""

    status: int
    lines: list[str]
    """What it printed, `error: ` taken off."""
    stdout: str
    changed: set[str] = field(default_factory=set)
    """Files made, changed or removed."""


def build(folder: Path) -> Path:
    """The sound files, to be copied for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    state = random_state(CONFIG)
    write_meta(folder / "meta", CONFIG, state, 2)
    write_gguf_model(folder / "model.gguf", CONFIG, state)
    write_json(folder / "ds.json", deepspeed_json())
    write_rows(folder / "rows.json")
    write_adapter(folder / "adapter")
    (folder / "hosts").write_text("a slots=1\nb slots=1\n")
    (folder / "finished").mkdir()
    write_json(folder / "finished" / "run.json", {"steps": 1})
    return folder


def write_adapter(
    folder: Path,
    rank: int = 4,
    targets: tuple[str, ...] = ("wq", "wv"),
    size: float = 1.0,
    config: ModelConfig = CONFIG,
) -> None:
    """A sound adapter of that rank on `targets`, with factors as large as `size`."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(config.n_layers):
        for target in targets:
            rows, columns = config.linear_shape(target)
            name = f"layers.{layer}.{PART_OF[target]}.{target}.lora"
            state[f"{name}.a"] = size * torch.randn(rank, columns, generator=generator)
            state[f"{name}.b"] = size * torch.randn(rows, rank, generator=generator)
    peft_format.save(
        folder, state, peft_format.AdapterConfig(LoRAOptions(rank, 8.0, 0.0, targets), "m")
    )


def run(case: Case, sound: Path, folder: Path) -> Outcome:
    """Spoil a copy of `sound` in `folder` and run the command there, in this process."""
    shutil.copytree(sound, folder)
    setting = Setting(folder, case.command)
    with _inside(folder), contextlib.ExitStack() as patches:
        case.spoil(setting)
        for patch in [*_traps(case.loads), *setting.patches]:
            patches.enter_context(patch)
        before = _snapshot(folder)
        out, err = io.StringIO(), io.StringIO()
        function, options = COMMANDS[case.command]
        environment = {
            name: text
            for name, text in os.environ.items()
            if name not in _OF_A_LAUNCHER and not name.startswith(_OF_OTHERS)
        }
        with (
            mock.patch.dict(os.environ, environment | setting.environment, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = run_command(function, options, f"{case.command}.py", "", setting.arguments())
        changed = {name for name, _ in before ^ _snapshot(folder)}
    lines = err.getvalue().replace(f"{folder.resolve()}/", "").splitlines()
    return Outcome(
        status, [line.removeprefix("error: ") for line in lines], out.getvalue(), changed
    )


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    home = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


def _traps(loads: bool) -> list[Any]:
    """Reading weights fails, unless they may be read; no rank waits for the first to speak."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are being loaded")

    patient = mock.patch("llama.settings.options.SECONDS_FOR_THE_FIRST_RANK", 0.0)
    return (
        [patient] if loads else [patient, mock.patch("llama.assembly.model.load_weights", loaded)]
    )


def _snapshot(folder: Path) -> set[tuple[str, tuple[int, int]]]:
    """Every path below `folder` with what a write would change."""
    found = set()
    for path in folder.rglob("*"):
        status = path.lstat()
        size_and_time = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
        found.add((str(path.relative_to(folder)), size_and_time))
    return found
