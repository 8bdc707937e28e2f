"""Prompts answered before and after the training: of rows that it learns, and of rows that it does
not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from llama.assembly import use
from llama.assembly.limits import can_answer
from llama.data.prepare import Prepared
from llama.data.rows import Row
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.files.run_folder import SAMPLES
from llama.methods.about import complete_card
from llama.model.transformer import Transformer
from llama.pages.sample import Sample
from llama.parallel.mesh import Mesh
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat import joined_content
from llama.train.start.inputs import Inputs

T = TypeVar("T")

COUNT = 4
"""Prompts of each kind of rows."""
MAX_NEW_TOKENS = 48
LOOKED_AT = 4096
"""Rows of each kind that are read in search of prompts: plain texts have none."""

Rows = Literal["training", "held-out"]
HEADINGS: dict[Rows, str] = {"training": "From the training rows", "held-out": "Held out"}


@dataclass(frozen=True)
class Prompt:
    """One prompt, as text to show and as ids to answer."""

    text: str
    ids: list[int]
    rows: Rows = "held-out"


def choose_prompts(inputs: Inputs) -> list[Prompt]:
    """Conversations that the model can answer, up to their first answer: of the training rows one
    from each quarter, as they are often sorted; of the held-out ones the first."""
    learnt = np.unique(inputs.training.examples.rows)
    training = _read(inputs.training, spread(learnt.tolist()))
    held_out = inputs.held_out
    others = _read(held_out, held_out.row_numbers.tolist()) if held_out else ()
    return [
        *islice(_prompts(training, "training", inputs), COUNT),
        *islice(_prompts(others, "held-out", inputs), COUNT),
    ]


def _read(data: Prepared, numbers: Iterable[int]) -> Iterator[Row]:
    """The rows of those numbers, some at a time, as far as `LOOKED_AT`."""
    first = islice(numbers, LOOKED_AT)
    while some := list(islice(first, 16 * COUNT)):
        yield from data.rows_numbered(some)


def spread(items: Sequence[T]) -> Iterator[T]:
    """The first of each of `COUNT` equal parts, then the second of each, and so on."""
    size = -(-len(items) // COUNT)
    for offset in range(size):
        yield from items[offset::size]


def _prompts(rows: Iterable[Row], name: Rows, inputs: Inputs) -> Iterator[Prompt]:
    """A row that was cut may go on past what the model has positions or tokens for."""
    for row in rows:
        before_answer = []
        for message in row.messages:
            if message["role"] == "assistant":
                break
            before_answer.append(message)
        if before_answer:
            text = "\n\n".join(joined_content(message) for message in before_answer)
            ids = inputs.template.prompt(before_answer, inputs.tokenizer, row.tools)
            if can_answer(ids, MAX_NEW_TOKENS, inputs.source.config):
                yield Prompt(text, ids, name)


def comparable(prompts: list[Prompt], before: list[str]) -> tuple[list[Prompt], str | None]:
    """The prompts that `before`, as a checkpoint has it, answers; and a line on those that it does
    not: earlier programs asked the held-out rows alone."""
    if len(before) == len(prompts):
        return prompts, None
    kept = [prompt for prompt in prompts if prompt.rows == "held-out"]
    kept = kept if len(kept) == len(before) else []
    return kept, (
        f"the checkpoint holds {len(before)} answers from before the training, and there are "
        f"{len(prompts)} prompts: {len(prompts) - len(kept)} are not compared"
    )


class Comparison:
    """Answers of a run's model before and after its training. Every rank must call what asks it."""

    def __init__(self, inputs: Inputs, model: Transformer, mesh: Mesh) -> None:
        self.prompts = choose_prompts(inputs)
        self._inputs = inputs
        self._model = model
        self._mesh = mesh

    def before(self) -> list[str]:
        """What must be asked before the first step: nothing, where the model can still be asked at
        the end as it is now. That is sooner training, and no wait in a run that is stopped."""
        return [] if self._inputs.method.as_begun(self._model) else self._now()

    def keep_to(self, before: list[str]) -> str | None:
        """Have the prompts be those that `before`, as a checkpoint has it, answers; a line on the
        others."""
        if not before and self._inputs.method.as_begun(self._model):
            return None
        self.prompts, left_out = comparable(self.prompts, before)
        return left_out

    def both(self, before: list[str]) -> list[Sample]:
        """The prompts with the answers before the training, `before` if they were asked then, and
        now."""
        after = self._now()
        as_begun = self._inputs.method.as_begun(self._model)
        if not before and as_begun is not None:
            with as_begun:
                before = self._now()
        return paired(self.prompts, before, after)

    def _now(self) -> list[str]:
        return answers(self._model, self._inputs.tokenizer, self.prompts, self._mesh)


def answers(
    model: Transformer, tokenizer: Tokenizer, prompts: list[Prompt], mesh: Mesh
) -> list[str]:
    """What the model says now, greedily, by the main rank's choice of each token. Every rank must
    call it: all take part in each forward pass, where the model is spread over them."""
    ids = [prompt.ids for prompt in prompts]
    texts = use.answers(model, tokenizer, ids, MAX_NEW_TOKENS, mesh.of_main)
    return [text.strip() for text in texts]


def paired(prompts: list[Prompt], before: list[str], after: list[str]) -> list[Sample]:
    """Each prompt with its answers before and after the training."""
    return [
        Sample(HEADINGS[prompt.rows], prompt.text, old, new)
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]


def keep(folder: Path, result: Path, prompts: list[Prompt], said: list[Sample]) -> None:
    """Write the answers into the run's `folder`, and into the card of the `result` that gave those
    after the training. Raises `OSError`; the files are then as they were."""
    write_samples(folder / SAMPLES, prompts, said)
    complete_card(result, for_card(said))


def write_samples(path: Path, prompts: list[Prompt], said: list[Sample]) -> None:
    """`samples.jsonl`: rows, prompt, before, after. Raises `OSError`; the file is then as it
    was."""
    rows = [
        {**asdict(sample), "rows": prompt.rows}
        for prompt, sample in zip(prompts, said, strict=True)
    ]
    lines = [json_text(row, ensure_ascii=False) + "\n" for row in rows]
    write_file(path, "".join(lines).encode())


def for_card(said: list[Sample]) -> list[Sample]:
    """Those for a model card: held-out rows if there are any, which show what was learnt and not
    what was kept."""
    held_out = [sample for sample in said if sample.rows == HEADINGS["held-out"]]
    return held_out or said


def as_text(said: Sequence[Sample]) -> str:
    """For a reader, each kind of rows under its heading."""
    parts = []
    heading = None
    for sample in said:
        if sample.rows != heading:
            heading = sample.rows
            parts.append(f"{heading}:")
        parts.append(
            f"> {_quoted(sample.prompt)}\n  before: {_indented(sample.before)}\n"
            f"  after:  {_indented(sample.after)}"
        )
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return text.replace("\n", "\n          ")


def _quoted(text: str) -> str:
    return text.replace("\n", "\n> ")
