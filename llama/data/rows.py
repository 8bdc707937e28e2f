"""Rows of training data: each a conversation or a plain text, from any of the forms of
`llama.data.forms`, in one file or in several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from llama.data.columns import Columns, Renamer
from llama.data.fields import Fields, kind
from llama.data.forms import EXPECTED, Form, columns_hint, foreign, form_of, read_tools
from llama.data.records import WANTED, Problems, no_rows, read_records
from llama.data.source import Source
from llama.errors import UserError, raise_if
from llama.files.shards import data_files
from llama.tokenizer.base import Message

BUNDLED = ("instructions_200", "heldout_40")
SHOWN = 8
"""Fields that a message names of a row that has no known ones."""


@dataclass(frozen=True)
class Row:
    """One row: a conversation with at least one answer, or else a plain text."""

    number: int
    """As `Source` counts: in the only file from 1; of a JSONL file, its line."""
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: list[Any] | None = None
    """The functions that the model may call, for the template to write."""
    unread: tuple[str, ...] = ()
    """Fields that it has and that are not read, those of its turns as `name of a turn`."""
    own: Columns = ()
    """Columns that were to be renamed, and that it has by the new name alone."""


@dataclass(frozen=True)
class DataSet:
    """All rows, and the files that they are from."""

    source: Source
    rows: list[Row]


def bundled(name: str) -> Path:
    """The file of the bundled data set `name`, one of `BUNDLED`."""
    assert name in BUNDLED
    return Path(str(resources.files("llama.data") / "bundled" / f"{name}.json"))


def read_rows(paths: Sequence[Path], columns: Columns = ()) -> DataSet:
    """All rows of the files, and folders of shards, in order, `columns` renamed, all in memory:
    what a data set with something wrong in it is read by. `llama.data.prepare` reads sound ones
    part by part.

    Raises UserError with every problem of the files: one line each, naming file, row and field, the
    first 20 of a file and a count of the rest.
    """
    files = [file for path in paths for file in data_files(path)]
    starts = [0]
    rows: list[Row] = []
    problems: list[str] = []
    renamer = Renamer(columns)
    for file in files:
        try:
            of_file, last = _read_file(file, starts[-1], renamer)
            rows += of_file
            starts.append(starts[-1] + last)
        except UserError as error:
            problems += error.problems
    source = Source(tuple(files), tuple(starts[:-1]))
    raise_if(renamer.problems(source.name) or problems)
    return DataSet(source, rows)


def _read_file(path: Path, start: int, renamer: Renamer) -> tuple[list[Row], int]:
    """The rows of one file, numbered from `start` + 1, and the number of the last within it."""
    records, unit = read_records(path)
    if not records:
        raise no_rows(path)
    problems = Problems(path)
    rows, _ = rows_of(records, unit, start, renamer, problems)
    problems.raise_any()
    return rows, records[-1][0]


def rows_of(
    records: Iterable[tuple[int, Any]],
    unit: str,
    start: int,
    renamer: Renamer,
    problems: Problems,
) -> tuple[list[Row], str | None]:
    """The rows that numbered `records` of one file hold, numbered from `start` on, and the name of
    their form. What is wrong with any is noted in `problems`."""
    rows: list[Row] = []
    first: Form | None = None
    mixed = False
    for number, record in records:
        place = f"{unit} {number}"
        if not isinstance(record, dict):
            problems.add_kind(place, f"is {kind(record)}, not an object; give {WANTED}")
            continue
        record, own = renamer.renamed(record)
        form = form_of(record)
        if (what := foreign(record, form)) is not None:
            problems.add_kind(place, what)
            continue
        if form is None:
            unknown = f"has none of the known fields{_found(record)}; {EXPECTED}"
            problems.add_kind(place, unknown + columns_hint(record))
            continue
        first = first or form
        if form is not first:
            if not mixed:
                are = f"is {form.name}, but the rows before it are {first.name}; part them"
                problems.add(place, are)
            mixed = True
            continue
        fields = Fields(record, place, problems)
        row = _read_row(fields, form, start + number, own)
        if fields.sound:
            rows.append(row)
    return rows, first and first.name


def _read_row(fields: Fields, form: Form, number: int, own: Columns) -> Row:
    said = form.read(fields)
    if isinstance(said, str):
        return Row(number, text=said, unread=fields.unread, own=own)
    tools = read_tools(fields)
    return Row(number, tuple(said), tools=tools, unread=fields.unread, own=own)


def _found(record: dict[str, Any]) -> str:
    names = [repr(name)[1:-1][:40] for name in list(record)[:SHOWN]]
    more = " and more" if len(record) > SHOWN else ""
    return f" (it has {', '.join(names)}{more})" if names else ""
