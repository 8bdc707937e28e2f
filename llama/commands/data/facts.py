"""What a data set holds for a run, counted: on top of what `prepare` reports of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from llama.data.columns import Columns, Renamer
from llama.data.flat import Array, Examples, again, among
from llama.data.forms import form_of
from llama.data.prepare import Prepared
from llama.data.rows import Row
from llama.data.stream import items, parsed
from llama.data.types import IGNORE
from llama.errors import UserError
from llama.tokenizer.base import Template, Tokenizer
from llama.tokenizer.segments import plain_text

AT_ONCE = 512
"""Rows that are read again at a time."""


@dataclass(frozen=True)
class FileFacts:
    """One file of a data set."""

    path: Path
    rows: int
    form: str
    columns: tuple[str, ...]
    """Of its first row, as the file names them."""


@dataclass(frozen=True)
class Whole:
    """A row as the template writes it, however long. `labels` are as `Example` has them."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class SetFacts:
    """One data set: what is trained on, or what is held out."""

    option: str
    """By which it was given: `data` or `eval_data`."""
    prepared: Prepared
    files: tuple[FileFacts, ...]
    lengths: Array
    """Tokens of each row of `prepared.row_numbers`, nothing cut off."""
    seq_len: int

    @property
    def fitting(self) -> int:
        """Rows no longer than `seq_len`."""
        return int((self.lengths <= self.seq_len).sum())

    @property
    def filled(self) -> float:
        """What share of its packed rows' positions hold a token."""
        return self.prepared.report.tokens / (len(self.prepared.packed) * self.seq_len)


@dataclass(frozen=True)
class Duplicates:
    """Numbers of the rows whose tokens another has too."""

    training: tuple[int, ...]
    """Training rows that an earlier one has said."""
    held_out: tuple[int, ...] = ()
    """Held-out rows that an earlier one has said."""
    shared: tuple[int, ...] = ()
    """Held-out rows that the model is trained on."""


def set_facts(
    option: str, prepared: Prepared, template: Template, tokenizer: Tokenizer, seq_len: int
) -> SetFacts:
    """Reads the first row of each file again, for the names of its columns."""
    starts = np.array([*prepared.report.source.starts, np.iinfo(np.int64).max - 1])
    ends = np.searchsorted(prepared.row_numbers, starts + 1)
    files = tuple(
        _file_facts(path, int(count), prepared.columns)
        for path, count in zip(prepared.files, np.diff(ends), strict=True)
    )
    lengths = _lengths(prepared, template, tokenizer, seq_len)
    return SetFacts(option, prepared, files, lengths, seq_len)


def _file_facts(path: Path, rows: int, columns: Columns) -> FileFacts:
    record = parsed(next(items(path))[2])
    form = form_of(Renamer(columns).renamed(record)[0])
    assert form is not None, "prepare refuses such a file"
    return FileFacts(path, rows, form.name, tuple(map(str, record)))


def _lengths(prepared: Prepared, template: Template, tokenizer: Tokenizer, seq_len: int) -> Array:
    """A row that gave one example shorter than `seq_len` is that long; any other may have been cut
    or left out, and is written again."""
    numbers, examples = prepared.row_numbers, prepared.examples
    place = np.searchsorted(numbers, examples.rows)
    count = np.bincount(place, minlength=len(numbers))
    lengths = np.zeros(len(numbers), np.int64)
    lengths[place] = examples.lengths
    unsure = np.flatnonzero((count != 1) | (lengths >= seq_len))
    for start in range(0, len(unsure), AT_ONCE):
        part = unsure[start : start + AT_ONCE]
        rows = prepared.rows_numbered(numbers[part].tolist())
        lengths[part] = [len(whole_row(row, template, tokenizer).ids) for row in rows]
    return lengths


def whole_row(row: Row, template: Template, tokenizer: Tokenizer) -> Whole:
    """The tokens of `row`, uncut."""
    if row.text is not None:
        ids = plain_text(row.text, tokenizer)
        return Whole(ids, list(ids))
    return Whole(*template.render(row.messages, tokenizer, row.tools))


def duplicates(training: SetFacts, held_out: SetFacts | None) -> Duplicates:
    """By the tokens of examples, as they are trained on."""
    ours = training.prepared.examples
    repeated = _rows_of(ours, again(ours.contents))
    if held_out is None:
        return Duplicates(repeated)
    theirs = held_out.prepared.examples
    return Duplicates(
        repeated,
        _rows_of(theirs, again(theirs.contents)),
        _rows_of(theirs, among(ours.contents, theirs.contents)),
    )


def _rows_of(examples: Examples, chosen: Array) -> tuple[int, ...]:
    return tuple(np.unique(examples.rows[chosen]).tolist())


def chosen_rows(facts: SetFacts, asked: Sequence[int]) -> list[tuple[Row, str]]:
    """The rows to be shown, each with why: those asked for, or the first, one of median length and
    the longest. Raises UserError where one that is asked for is not there."""
    numbers = facts.prepared.row_numbers
    missing = [str(number) for number in asked if number not in numbers]
    if missing:
        raise UserError(
            f"--rows: {facts.prepared.report.source.name} has no row {', '.join(missing)}; it has "
            f"{len(numbers):,}, numbered from {numbers[0]} to {numbers[-1]}"
        )
    picked = dict.fromkeys(asked, "")
    if not asked:
        by_length = numbers[np.argsort(facts.lengths, kind="stable")]
        picked = {
            int(numbers[0]): "the first",
            int(by_length[len(by_length) // 2]): "of median length",
            int(by_length[-1]): "the longest",
        }
    rows = facts.prepared.rows_numbered(list(picked))
    return list(zip(rows, picked.values(), strict=True))


def why_left_out(row: Row, whole: Whole, facts: SetFacts, held_out: SetFacts | None) -> str:
    """What kept `row` out of training; empty if it is learnt from."""
    if row.number in facts.prepared.examples.rows:
        return ""
    same = held_out is not None and held_out.prepared.files == facts.prepared.files
    if same and held_out is not None and row.number in held_out.prepared.examples.rows:
        return "held out by --eval_split"
    if not whole.supervised:
        return "its text has no token" if row.text is not None else "no answer in it is learnt"
    if facts.prepared.report.dropped and len(whole.ids) > facts.seq_len:
        return f"longer than --seq_len {facts.seq_len}"
    return f"its prompt alone has {facts.seq_len} tokens or more"


def bins(lengths: Array, seq_len: int) -> list[tuple[int, int, int]]:
    """`(from, to, rows)` of a histogram: the ends are the powers of two and one half more (16, 24,
    32, 48, ...), and `seq_len`, so that no bin has rows on both sides of it. Empty bins at either
    end are left out."""
    ends = {end for power in range(2, 62) for end in (1 << power, 3 << (power - 1))} | {seq_len}
    ordered = sorted(ends)
    found, rows = np.unique(np.searchsorted(ordered, lengths), return_counts=True)
    counts = Counter(dict(zip(found.tolist(), rows.tolist(), strict=True)))
    return [
        (ordered[i - 1] + 1 if i else 1, ordered[i], counts[i])
        for i in range(min(counts), max(counts) + 1)
    ]


@dataclass(frozen=True)
class Piece:
    """A stretch of a row that is learnt, or is not: text, or one control token's name."""

    text: str
    learnt: bool
    control: bool


def pieces(whole: Whole, tokenizer: Tokenizer) -> list[Piece]:
    """The row as text, control tokens by their names.

    Text is decoded from one control token to the next, and cut where learning begins or ends: a
    tokenizer decodes a text that begins otherwise than one that goes on.
    """
    names = {id_: name for name, id_ in tokenizer.special_tokens.items()}
    learnt = [i > 0 and label != IGNORE for i, label in enumerate(whole.labels)]
    found: list[Piece] = []
    for control, stretch in groupby(range(len(whole.ids)), lambda i: whole.ids[i] in names):
        places = list(stretch)
        if control:
            found += [Piece(names[whole.ids[i]], learnt[i], True) for i in places]
            continue
        done = ""
        for is_learnt, run in groupby(places, lambda i: learnt[i]):
            text = tokenizer.decode(whole.ids[places[0] : list(run)[-1] + 1])
            found.append(Piece(text[len(done) :], is_learnt, False))
            done = text
    return [piece for piece in found if piece.text]
