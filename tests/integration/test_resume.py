"""A run that was stopped and taken up again is the run that was not, bit for bit on one topology
and within rounding on another."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tiny_runs import (
    deepspeed_json,
    launched,
    read_lines,
    started,
    succeeded,
    write_json,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes", "mfu"}
STEPS = 8
"""Of two epochs of 7 rows, two documents in each: four windows of two rows, the last of one."""
TOLERANCE = 1e-4
"""Of losses and of weights, where the topology changed: sums are rounded in another order."""


@dataclass
class Case:
    """One model, its rows, and the runs made on them."""

    folder: Path
    runs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = write_model(self.folder / "model")
        self.rows = write_rows(self.folder / "rows.json", 14)
        self.held_out = write_rows(self.folder / "held_out.json", 3)

    def out(self, name: str) -> Path:
        return self.folder / name

    def argv(self, name: str, settings: dict[str, Any], *more: str) -> list[str]:
        path = self.folder / f"settings-{len(list(self.folder.glob('settings-*')))}.json"
        return [
            *("--deepspeed", str(write_json(path, settings)), "--model", str(self.model)),
            *("--data", str(self.rows), "--eval_data", str(self.held_out)),
            *("--template", "chatml", "--seq_len", "96", "--epochs", "2"),
            *("--lora.targets", "wq,wo", "--lora.dropout", "0.1"),
            *("--output_dir", str(self.out(name)), *more),
        ]

    def add(self, name: str, settings: dict[str, Any], stop_at: int | None, *more: str) -> None:
        """A run of the next `go`; `stop_at` counts from where it starts."""
        self.runs.append({"argv": self.argv(name, settings, *more), "stop_at": stop_at})

    def go(self, ranks: int = 1) -> str:
        """Make the runs that were added, one after the other; gives what they said."""
        plan = write_json(self.folder / "plan.json", self.runs)
        launcher = "python" if ranks == 1 else "torchrun"
        done = started(launcher, "tests/resume_runs.py", plan, ranks=ranks)
        assert done.returncode == 0, done.stderr
        self.runs = []
        return done.stderr


def settings(kind: str, accumulation: int = 2) -> dict[str, Any]:
    """`zero1-bf16` and the like, with a schedule that moves at every step."""
    stage, precision = int(kind[4]), kind[6:]
    document = deepspeed_json(stage, accumulation)
    document["scheduler"] = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}
    document["scheduler"]["params"] |= {"warmup_num_steps": "auto", "warmup_min_lr": "auto"}
    if precision == "bf16":
        document["bf16"] = {"enabled": True}
    return document


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = read_lines(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def summary(out: Path) -> dict[str, Any]:
    kept = ("status", "steps", "epoch_losses", "eval_loss", "eval_loss_before")
    document = json.loads((out / "summary.json").read_text())
    return {key: document[key] for key in kept}


def adapter(out: Path) -> Path:
    return out / "adapter" / "adapter_model.safetensors"


def assert_the_same(out: Path, straight: Path) -> None:
    assert metrics(out) == metrics(straight)
    assert summary(out) == summary(straight)
    assert adapter(out).read_bytes() == adapter(straight).read_bytes()
    assert (out / "samples.jsonl").read_bytes() == (straight / "samples.jsonl").read_bytes()
    newest = f"checkpoints/step-{STEPS}/optimizer.safetensors"
    assert (out / newest).read_bytes() == (straight / newest).read_bytes()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("resume"))


def test_a_run_resumed_at_every_step_is_the_same(case: Case) -> None:
    """Stopped once at each step k, mid-epoch and at its end; and once after every single step."""
    kind = settings("zero1-fp32")
    case.add("straight", kind, None)
    for k in range(1, STEPS + 1):
        case.add(f"at-{k}", kind, k)
        case.add(f"at-{k}", kind, None)
    for _ in range(STEPS):
        case.add("always", kind, 1)
    case.add("always", kind, None)
    said = case.go()
    straight = case.out("straight")
    assert [line["step"] for line in metrics(straight) if "loss" in line] == [*range(1, STEPS + 1)]
    for name in [*(f"at-{k}" for k in range(1, STEPS + 1)), "always"]:
        assert_the_same(case.out(name), straight)
    assert f"going on from {case.out('at-3')}/checkpoints/step-3: step 3 of {STEPS}" in said
    resumed = json.loads((case.out("always") / "run.json").read_text())["resumed"]
    assert [entry["step"] for entry in resumed] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize("kind", ["zero0-fp32", "zero1-bf16", "zero2-bf16", "zero3-bf16"])
def test_at_every_stage_and_precision(kind: str, case: Case) -> None:
    case.add(f"{kind}", settings(kind), None)
    for k in (3, 6):
        case.add(f"{kind}-{k}", settings(kind), k, "--checkpointing", "none")
        case.add(f"{kind}-{k}", settings(kind), None)
    case.go()
    for k in (3, 6):
        assert_the_same(case.out(f"{kind}-{k}"), case.out(kind))
