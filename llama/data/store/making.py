"""A part of a data file made into flat examples, in whatever process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama.data.columns import Columns, Renamer
from llama.data.examples import Overlong, build_examples
from llama.data.flat import DTYPES, Array, flatten
from llama.data.records import Problems
from llama.data.rows import rows_of
from llama.data.stream import Item, UnsoundError, items, parsed, unit_of
from llama.data.tally import Tally, tally_of
from llama.tokenizer.base import Template, Tokenizer

PART_ROWS, PART_BYTES = 512, 1 << 20
"""A part ends at whichever comes first. It is what one process holds at a time."""
_NUMBER = 8
"""Bytes of what is no text."""


@dataclass(frozen=True)
class Making:
    """What rows are made into, and by what: the same for all parts."""

    template: Template
    tokenizer: Tokenizer
    seq_len: int
    overlong: Overlong
    columns: Columns = ()


@dataclass
class Part:
    """Records of one file that follow one another, not yet parsed where they are JSON."""

    path: Path
    unit: str
    """What their numbers count."""
    start: int
    """What is added to their numbers, as `Source.starts` has it."""
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """What came of a part."""

    form: str | None
    """Of its rows."""
    tally: Tally
    refused: Sequence[tuple[int, str]]
    """Row number and reason, as of `ExampleSet`."""
    renamer: Renamer
    """What it has met of the columns that were to be renamed."""
    arrays: dict[str, Array]
    """As `DTYPES` names them."""


def parts(files: Sequence[Path], starts: list[int]) -> Iterator[Part]:
    """The records of all files in order. `starts` is empty and is filled as the files are gone
    through. Raises UnsoundError and UserError."""
    next_start = 0
    for path in files:
        starts.append(next_start)
        part = Part(path, unit_of(path), starts[-1])
        size = last = 0
        for item in items(path):
            part.items.append(item)
            last = item[0]
            size += size_of(item[2])
            if len(part.items) == PART_ROWS or size >= PART_BYTES:
                yield part
                part, size = Part(path, part.unit, part.start), 0
        if not last:
            raise UnsoundError(f"{path}: no rows")
        if part.items:
            yield part
        next_start += last


def size_of(item: Any) -> int:
    """Bytes or characters that an item holds, roughly: of a row of a table those of its values."""
    if isinstance(item, dict):
        return sum(map(size_of, item.values()))
    if isinstance(item, list | tuple):
        return sum(map(size_of, item))
    return len(item) if isinstance(item, str | bytes) else _NUMBER


def make(part: Part, making: Making, first: int | None = None) -> Made:
    """Of its `first` rows alone, if that is given. Raises UnsoundError for a row with a problem."""
    problems = Problems(part.path)
    try:
        records = [(number, parsed(item)) for number, _, item in part.items]
    except (ValueError, RecursionError) as error:
        raise UnsoundError(f"{part.path}: {error}") from None
    renamer = Renamer(making.columns)
    rows, form = rows_of(records, part.unit, part.start, renamer, problems)
    if problems.any:
        raise UnsoundError(f"{part.path}: problems")
    kept = rows[:first]
    built = build_examples(kept, making.template, making.tokenizer, making.seq_len, making.overlong)
    arrays = flatten(built.examples)
    at = range(len(kept))
    for name, values in (
        ("numbers", [kept[i].number for i in at]),
        ("places", [part.items[i][1] for i in at]),
    ):
        arrays[name] = np.array(values, DTYPES[name])
    return Made(form, tally_of(built, making.tokenizer), built.refused, renamer, arrays)


def make_first(every: Iterable[Part], making: Making, first: int | None) -> Iterator[Made]:
    """Each part made in this process; `first` rows of all of them."""
    left = first
    for part in every:
        yield make(part, making, left)
        left = None if left is None else max(0, left - len(part.items))
