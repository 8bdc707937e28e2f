"""What a user would do next with what a run has given: the commands, as they are to be typed."""

from __future__ import annotations

from pathlib import Path

from llama.data.rows import bundled
from llama.launch.typed import is_offered, nearer, typed
from llama.settings import EvaluateOptions
from llama.settings.base import HALF
from llama.settings.options.declare import declared
from llama.train.start.inputs import Inputs

_PROMPT = "Name three fruits."


def next_commands(inputs: Inputs, folder: Path, precision: str) -> list[str]:
    """To talk to it, to measure it and to hand it on, as far as there is a command for that.
    `folder` is the run's, `precision` what it computed in (`fp16`, `bf16`, `fp32`)."""
    options = inputs.options
    if inputs.method.SHARDED:
        result = ["--model", folder / inputs.method.RESULT]
        if options.template is not None:
            result += ["--template", options.template]
    else:
        result = ["--adapter", folder]
    if options.tokenizer is not None:
        result += ["--tokenizer", options.tokenizer]
    used = result if options.base == HALF else [*result, "--base", options.base]
    lines = []
    if is_offered("chat") and not inputs.method.SHARDED:
        lines.append(typed("chat", *used))
    elif is_offered("generate"):
        lines.append(typed("generate", *used, "--prompt", _PROMPT))
    if is_offered("evaluate") and options.eval_split is not None and not inputs.method.SHARDED:
        lines.append(typed("evaluate", *used))
    elif is_offered("evaluate") and (rows := _held_out(inputs)):
        more = ["--precision", "float32"] if precision == "fp32" else []
        lines.append(typed("evaluate", *used, *rows, *_read_alike(inputs), *more))
    if is_offered("export"):
        to = ("--format", "hf", "--output_dir", folder / "merged")
        lines.append(typed("export", *result, *to))
    return lines


def _held_out(inputs: Inputs) -> list[str | Path]:
    """The rows that the run was evaluated on, where they are files of their own."""
    if inputs.held_out is None or inputs.options.eval_split is not None:
        return []
    files = inputs.options.eval_data or [nearer(bundled("heldout_40"))]
    return [word for file in files for word in ("--data", file)]


def _read_alike(inputs: Inputs) -> list[str]:
    """Options by which rows become the tokens that they were in the run."""
    options = inputs.options
    of_evaluate = {option.name: option.default for option in declared(EvaluateOptions)}
    values = {
        "seq_len": str(options.seq_len),
        "pack": str(options.pack).lower(),
        "overlong": options.overlong,
        "columns": ",".join(f"{new}={old}" for new, old in options.columns),
    }
    return [
        word
        for name, value in values.items()
        if value and value != str(of_evaluate[name]).lower()
        for word in (f"--{name}", value)
    ]
