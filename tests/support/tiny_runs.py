"""The launchers as a user starts them, on a model, rows and settings of a few kilobytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llama.model.config import ModelConfig
from llama.settings.deepspeed_json import Resolved, check, resolve
from tests.support.model_files import ROOT, TINY, random_state, write_huggingface, write_meta
from tests.support.ports import free_port
from tests.support.tokenizer_files import write_sentencepiece, write_tokenizer_json

CONFIG = replace(TINY, vocab_size=264, max_seq_len=256)
"""TINY with room for the byte tokenizer's 261 tokens."""

Launcher = Literal["python", "torchrun", "deepspeed"]

_OF_A_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def merged(argv: Sequence[str], more: Sequence[str]) -> list[str]:
    """`more` in place of what `argv` says of the same options; a value of `-` takes one out. Both
    hold an option and its value in turn."""
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    given |= dict(zip(more[::2], more[1::2], strict=True))
    return [part for pair in given.items() if pair[1] != "-" for part in pair]


def write_model(folder: Path, config: ModelConfig = CONFIG) -> Path:
    """A Hugging Face folder with random weights and a tokenizer of bytes."""
    write_huggingface(folder, config)
    write_tokenizer_json(folder)
    return folder


META_CONFIG = replace(TINY, vocab_size=512, max_seq_len=512, tied_embedding=True)
"""TINY as small models in Meta's layout are, with a vocabulary for `write_meta_model`."""


def write_meta_model(folder: Path) -> Path:
    """A folder in Meta's layout with random weights, and a tokenizer.model trained here."""
    write_meta(folder, META_CONFIG, random_state(META_CONFIG))
    write_sentencepiece(folder / "tokenizer.model", META_CONFIG.vocab_size)
    return folder


def write_rows(path: Path, count: int = 11) -> Path:
    """Prompts and completions of different lengths."""
    rows = [
        {"prompt": f"add {i} to {i * i}", "completion": f"{i + i * i} " + "he" * (3 * i % 7)}
        for i in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def deepspeed_json(zero_stage: int = 0, accumulation: int = 2, **params: Any) -> dict[str, Any]:
    """Float32 settings; `params` are the optimizer's. Adam's eps is above the rounding of a
    gradient: below it, an element whose gradient is all rounding moves by the whole rate."""
    adam = {"lr": 5e-3, "eps": 1e-6, "torch_adam": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": "AdamW",
            "params": {**adam, **params},
        },
        "zero_optimization": {"stage": zero_stage},
    }


def resolved_json(
    document: dict[str, Any], data_parallel: int, config: ModelConfig, fp16: bool = False
) -> Resolved:
    """Settings as an engine takes them, found right first; for work cut into steps by hand."""
    assert not check(document, "settings", data_parallel=data_parallel)
    return resolve(
        document, data_parallel=data_parallel, total_steps=0, width=config.dim, fp16_supported=fp16
    )


def write_json(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def environment() -> dict[str, str]:
    """Ours without a launcher's variables, this checkout first on the module path."""
    kept = {k: v for k, v in os.environ.items() if k not in _OF_A_LAUNCHER}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path}


def of_one_thread() -> dict[str, str]:
    """`environment` for tiny models: several threads would wait for one another longer than
    products of this size take."""
    return environment() | {"OMP_NUM_THREADS": "1"}


def torchrun_module(
    module: str, *argv: str | Path, ranks: int, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE` on `ranks` processes of torchrun's, from the project's root."""
    torchrun = Path(sys.executable).parent / "torchrun"
    start = [torchrun, "--nproc_per_node", ranks, "--master_port", free_port(), "-m", module]
    return subprocess.run(
        [*map(str, start), *map(str, argv)],
        cwd=ROOT,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def launched(
    launcher: Launcher, script: str, *argv: str | Path, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Start `launcher/SCRIPT` and wait for it."""
    return started(launcher, f"launcher/{script}", *argv, ranks=ranks)


def started(
    launcher: Launcher, script: str, *argv: str | Path, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Start a script under `launcher` and wait for it."""
    binaries = Path(sys.executable).parent
    port = str(free_port())
    start = {
        "python": [sys.executable],
        "torchrun": [binaries / "torchrun", "--nproc_per_node", str(ranks), "--master_port", port],
        "deepspeed": [binaries / "deepspeed", "--num_gpus", str(ranks), "--master_port", port],
    }[launcher]
    return subprocess.run(
        [*map(str, start), script, *map(str, argv)],
        cwd=ROOT,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object on our last line of standard output; what went wrong, if it did. The launcher
    of DeepSpeed has the last word there, under its own name and the time."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    while lines[-1].startswith("[20"):
        lines.pop()
    return json.loads(lines[-1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    """Those of its steps and of its evaluations, in their order."""
    lines = read_lines(run / "metrics.jsonl")
    return [line[key] for line in lines for key in ("loss", "eval_loss") if key in line]
