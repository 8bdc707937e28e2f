"""The settings of `evaluate`, and every check of them that needs no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llama.files.inputs import file_problem, new_file_problem
from llama.settings.base import Base, check_held
from llama.settings.data_sets import check_plain
from llama.settings.degrees import check_degree
from llama.settings.model import AdapterOptions, ReadingOptions
from llama.settings.validate import at_least, check_model, check_use


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ReadingOptions, AdapterOptions):
    """Settings of `evaluate`."""

    data: list[Path] = field(default_factory=list)
    """Rows to take the loss on: files or folders of shards, as train takes them; may be
    repeated. None means those held out by the run that --adapter is of."""
    task: Path | None = None
    """Questions whose answers are judged, a file in place of --data: rows with a question and
    choices with an answer, an answer alone (exact match), or a pattern (a regular expression)."""
    compare: bool = False
    """Whether the model alone is evaluated too, for the difference that --adapter makes."""
    output: Path | None = None
    """With --task: a JSONL file to write, each question with what was answered and whether that is
    right."""
    max_new_tokens: int = 256
    """With --task: end a written answer after this many tokens, if it did not end itself."""
    seq_len: int = 1024
    """Tokens of one row of a batch; see --overlong."""
    pack: bool = True
    """Whether examples share a row, each seeing only itself."""
    micro_batch: int = 1
    """Rows computed at a time; answers of a task that are written together."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of processes. The others share the
    rows."""
    precision: Literal["half", "float32"] = "half"
    """What the model computes in; half is the 16-bit type that suits the device."""
    base: Base = "half"
    """How the weights of the blocks are held: half, in what is computed in; fp8, int8 or nf4, as
    train --base does."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


def check_evaluate(options: EvaluateOptions, world_size: int) -> list[str]:
    """Every problem of `evaluate`'s settings on `world_size` ranks."""
    problems = [
        *check_model(options),
        *check_use(options),
        *check_held(options.base),
        *check_plain("data", options.data),
        *at_least(2, seq_len=options.seq_len),
        *at_least(1, micro_batch=options.micro_batch, max_new_tokens=options.max_new_tokens),
        *check_degree(options.tensor_parallel, world_size),
    ]
    if options.compare and options.adapter is None:
        problems.append("--compare: lays the model beside its adapter; give --adapter")
    if options.task is None:
        if options.output is not None:
            problems.append("--output: has no effect without --task")
        if not options.data:
            others = "give --task, or the --adapter of a run that held rows out"
            problems.append(f"--data: expected one or more files, found none; or {others}")
        return problems
    if options.data:
        problems.append("--data: --task takes its place; give one of them")
    if problem := file_problem(options.task):
        problems.append(f"--task: {options.task} {problem}")
    if options.output is not None and (problem := new_file_problem(options.output)):
        problems.append(f"--output: {problem}")
    return problems
