"""What a run is made of, so that no checkpoint is continued with anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llama.adapters.peft_format import peft_hash
from llama.files.weighted import weighted
from llama.kernels.compiled import is_wanted
from llama.parallel.mesh import Mesh
from llama.settings.options.marks import BY_VALUE, marked
from llama.train.start.facts import examples_digest, leaves
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule
from llama.weights.reader import fingerprint_of

_SECTIONS = ("optimizer", "scheduler", "gradient_clipping", "fp16", "bf16")
"""Of the DeepSpeed JSON, those that decide the arithmetic; compared as they are written, since what
"auto" stands for follows from the length of the run, which may grow."""
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "chat_template.jinja"),
)


def identity(inputs: Inputs, schedule: Schedule, mesh: Mesh) -> dict[str, Any]:
    """Name to value of everything that decides what a step computes. Files go by their SHA-256;
    reads every byte of the model's."""
    found: dict[str, Any] = {name: of(inputs) for name, of in CONTENTS.items()}
    found["examples"] = examples_digest(inputs.training.packed)
    weights = [str(of_set.weight) for of_set in weighted(inputs.options.data)]
    if set(weights) - {"1"}:  # A run from before there were weights is continued without any.
        found["weights of --data"] = weights
    found["precision"] = schedule.resolved.precision
    found["rows of a step"] = _rows_of_a_step(schedule, mesh)
    for name, value in marked(inputs.options, BY_VALUE):
        found[name] = _as_one(value) if isinstance(value, tuple) else value
    for section in _SECTIONS:
        found |= leaves(section, inputs.deepspeed.get(section))
    return found


def topology(
    inputs: Inputs, schedule: Schedule, mesh: Mesh, device: torch.device
) -> dict[str, Any]:
    """How the run is spread, and by what it is computed: the same sums, rounded in another order
    where any of it differs."""
    return {
        **mesh.as_json(),
        "zero_stage": schedule.resolved.zero_stage,
        "micro_batch": schedule.resolved.micro_batch,
        "accumulation": schedule.resolved.accumulation,
        "compile": is_wanted(
            inputs.options.compile, device.type == "cuda", schedule.resolved.precision
        ),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }


def likeness(was: dict[str, Any], now: dict[str, Any], dropout: float) -> str:
    """How like the run that was begun one is that goes on under another `topology`, as a line. A
    mask of dropout follows from the number of the micro-batch that it is of; GPUs have all the same
    way to make one, and a CPU has another."""
    on_cpu = [topology.get("device") == "cpu" for topology in (was, now)]
    same_masks = was.get("micro_batch") == now.get("micro_batch") and on_cpu[0] == on_cpu[1]
    if dropout > 0 and not same_masks:
        return "so dropout draws other masks from here on: a like run, not the same one"
    return "so it equals the run that was begun within rounding, not bit for bit"


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each thing in which a run is not the one that was begun."""
    lines = []
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name), now.get(name)
        if before == after:
            continue
        if name in _HASHED:
            lines.append(
                f"--{name}: not what the run began with: its SHA-256 was {_short(before)} "
                f"and is now {_short(after)}"
            )
        elif name == "examples":
            lines.append(
                "--data: its rows give other tokens than when the run began: the template's file, "
                "--overlong or this program has changed; a run from before --overlong was begun "
                "with `--overlong cut`, or `split` for plain texts"
            )
        else:
            lines.append(f"{name}: the run began with {before!r}, and is now given {after!r}")
    if any(line.startswith("--data: not") for line in lines):  # other rows have other tokens
        lines = [line for line in lines if not line.startswith("--data: its rows")]
    return lines


def _as_one(names: tuple[str | tuple[str, str], ...]) -> str:
    """Names, or pairs of them, whose order decides nothing."""
    return ",".join(sorted(name if isinstance(name, str) else "=".join(name) for name in names))


def _short(digest: object) -> str:
    return "that of none" if digest is None else f"{str(digest)[:12]}..."


def _rows_of_a_step(schedule: Schedule, mesh: Mesh) -> int:
    return schedule.resolved.micro_batch * schedule.resolved.accumulation * mesh.readers


def _tokenizer_hash(inputs: Inputs) -> str:
    path = inputs.options.tokenizer or inputs.source.tokenizer_path
    assert path is not None, "find_tokenizer refuses it"
    if path in inputs.source.files:  # a GGUF file holds both
        return inputs.source.reader.fingerprint()
    folder = path if path.is_dir() else path.parent
    beside = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return fingerprint_of(sorted({*beside, *([] if path.is_dir() else [path])}, key=_name))


def _name(path: Path) -> str:
    return path.name


def _held_out_hash(inputs: Inputs) -> str | None:
    return inputs.held_out and inputs.held_out.sha256


def _init_adapter_hash(inputs: Inputs) -> str | None:
    folder = inputs.options.init_adapter
    return folder and peft_hash(folder)


CONTENTS: dict[str, Callable[[Inputs], Any]] = {
    "model": lambda inputs: inputs.source.reader.fingerprint(),
    "data": lambda inputs: inputs.training.sha256,
    "eval_data": _held_out_hash,
    "tokenizer": _tokenizer_hash,
    "init_adapter": _init_adapter_hash,
}
"""Of each option that names something outside, what stands for its content."""
_HASHED = ("model", "data", "eval_data", "tokenizer", "init_adapter")
