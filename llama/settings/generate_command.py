"""The settings of `generate`, and every check of them that needs no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llama.files.inputs import new_file_problem
from llama.settings.commands import AnswerOptions
from llama.settings.degrees import check_degree
from llama.settings.options.marks import POSITIONAL
from llama.settings.validate import at_least, check_answering, check_model


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(AnswerOptions):
    """Settings of `generate`."""

    prompt: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """A text to answer; with --raw to continue, where '' starts from BOS alone. May be repeated; -
    is all of standard input as one text."""
    prompt_file: Path | None = None
    """More prompts: a text with one a line, or JSONL or a JSON list with `prompt` in each object; -
    reads them from standard input. Empty lines are none."""
    system: str | None = None
    """What the template is given as the system's turn, before each prompt."""
    raw: bool = False
    """Continue the prompt as it stands, with no template."""
    batch: int = 8
    """Prompts answered at a time; none sees another."""
    stream: bool | None = None
    """Whether an answer is shown as it is written, one prompt after another; none means that of a
    single prompt is."""
    output: Path | None = None
    """A JSONL file to be made: a line for each prompt, in their order, with the answer, appended
    as it is done."""
    tensor_parallel: int = 1
    """Ranks each layer is split over: as many as a launcher starts."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object: of one prompt
    its answer, of several `answers`, a list of them."""


def check_generate(options: GenerateOptions, world_size: int) -> list[str]:
    """Every problem of `generate`'s settings on `world_size` ranks."""
    problems = [
        *check_model(options),
        *check_answering(options),
        *at_least(1, batch=options.batch),
        *check_degree(options.tensor_parallel, world_size),
        *_check_prompts(options, world_size),
    ]
    if not problems and options.tensor_parallel < world_size:
        problems.append(
            f"--tensor_parallel: {world_size} processes were started, and generate has no work for "
            f"more than --tensor_parallel {options.tensor_parallel}: start as many"
        )
    problems += [
        f"--{name}: has no effect with --raw; give one of them"
        for name in ("template", "system")
        if options.raw and getattr(options, name) is not None
    ]
    problems += [
        f"--stream: has no effect with --{name}; give one of them"
        for name, given in {"json": options.json, "output": options.output is not None}.items()
        if options.stream and given
    ]
    if options.output is not None and (problem := new_file_problem(options.output)):
        problems.append(f"--output: {problem}")
    return problems


def _check_prompts(options: GenerateOptions, world_size: int) -> list[str]:
    if not options.prompt and options.prompt_file is None:
        return ["--prompt: required, or --prompt_file"]
    from_input = options.prompt.count("-") + (options.prompt_file == Path("-"))
    if from_input > 1:
        return ["-: standard input can be read once only; give one of them"]
    if from_input and world_size > 1:
        return ["-: a launcher hands no standard input on to its ranks; use --prompt_file FILE"]
    return []
