"""What a data set holds for a run, counted: on top of what `prepare` reports of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from llama.data.columns import Columns, Renamer
from llama.data.forms import form_of
from llama.data.prepare import Prepared
from llama.data.records import read_records
from llama.data.rows import Row
from llama.data.types import IGNORE, Example
from llama.errors import UserError
from llama.tokenizer.base import Template, Tokenizer
from llama.tokenizer.segments import plain_text


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
    lengths: dict[int, int]
    """Row number to tokens, nothing cut off."""
    seq_len: int

    @property
    def fitting(self) -> int:
        """Rows no longer than `seq_len`."""
        return sum(length <= self.seq_len for length in self.lengths.values())

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
    option: str,
    prepared: Prepared,
    columns: Columns,
    template: Template,
    tokenizer: Tokenizer,
    seq_len: int,
) -> SetFacts:
    """Reads the first rows of the files again, for the names of their columns."""
    source = prepared.report.source
    counts = Counter(bisect_right(source.starts, row.number - 1) - 1 for row in prepared.rows)
    files = tuple(
        _file_facts(path, counts[index], columns) for index, path in enumerate(source.files)
    )
    lengths = _lengths(prepared, template, tokenizer, seq_len)
    return SetFacts(option, prepared, files, lengths, seq_len)


def _file_facts(path: Path, rows: int, columns: Columns) -> FileFacts:
    records, _ = read_records(path)
    record = next(record for _, record in records if isinstance(record, dict))
    form = form_of(Renamer(columns).renamed(record))
    assert form is not None, "prepare refuses such a file"
    return FileFacts(path, rows, form.name, tuple(map(str, record)))


def _lengths(
    prepared: Prepared, template: Template, tokenizer: Tokenizer, seq_len: int
) -> dict[int, int]:
    """A row that gave one example shorter than `seq_len` is that long; any other may have been cut,
    and is written again."""
    by_row: dict[int, list[Example]] = {}
    for example in prepared.examples:
        by_row.setdefault(example.row, []).append(example)
    lengths: dict[int, int] = {}
    for row in prepared.rows:
        examples = by_row.get(row.number, [])
        whole = len(examples) == 1 and len(examples[0].input_ids) < seq_len
        ids = examples[0].input_ids if whole else whole_row(row, template, tokenizer).ids
        lengths[row.number] = len(ids)
    return lengths


def whole_row(row: Row, template: Template, tokenizer: Tokenizer) -> Whole:
    """The tokens of `row`, uncut."""
    if row.text is not None:
        ids = plain_text(row.text, tokenizer)
        return Whole(ids, list(ids))
    return Whole(*template.render(row.messages, tokenizer, row.tools))


def duplicates(training: SetFacts, held_out: SetFacts | None) -> Duplicates:
    """By the tokens of examples, as they are trained on."""
    repeated, known = _repeated(training.prepared.examples)
    if held_out is None:
        return Duplicates(repeated)
    examples = held_out.prepared.examples
    shared = dict.fromkeys(e.row for e in examples if tuple(e.input_ids) in known)
    return Duplicates(repeated, _repeated(examples)[0], tuple(shared))


def _repeated(examples: Iterable[Example]) -> tuple[tuple[int, ...], set[tuple[int, ...]]]:
    """Rows with an example that came before, and the ids of all examples."""
    known: set[tuple[int, ...]] = set()
    rows: dict[int, None] = {}
    for example in examples:
        ids = tuple(example.input_ids)
        if ids in known:
            rows[example.row] = None
        known.add(ids)
    return tuple(rows), known


def chosen_rows(facts: SetFacts, asked: Sequence[int]) -> list[tuple[Row, str]]:
    """The rows to be shown, each with why: those asked for, or the first, one of median length and
    the longest. Raises UserError where one that is asked for is not there."""
    by_number = {row.number: row for row in facts.prepared.rows}
    missing = [str(number) for number in asked if number not in by_number]
    if missing:
        rows = facts.prepared.rows
        raise UserError(
            f"--rows: {facts.prepared.report.source.name} has no row {', '.join(missing)}; it has "
            f"{len(rows):,}, numbered from {rows[0].number} to {rows[-1].number}"
        )
    if asked:
        return [(by_number[number], "") for number in dict.fromkeys(asked)]
    by_length = sorted(facts.lengths, key=facts.lengths.__getitem__)
    picked = {
        facts.prepared.rows[0].number: "the first",
        by_length[len(by_length) // 2]: "of median length",
        by_length[-1]: "the longest",
    }
    return [(by_number[number], why) for number, why in picked.items()]


def bins(lengths: Sequence[int], seq_len: int) -> list[tuple[int, int, int]]:
    """`(from, to, rows)` of a histogram: the ends are the powers of two and one half more (16, 24,
    32, 48, ...), and `seq_len`, so that no bin has rows on both sides of it. Empty bins at either
    end are left out."""
    ends = {end for power in range(2, 64) for end in (1 << power, 3 << (power - 1))} | {seq_len}
    ordered = sorted(ends)
    counts = Counter(bisect_right(ordered, length - 1) for length in lengths)
    return [
        (ordered[i - 1] + 1 if i else 1, ordered[i], counts[i])
        for i in range(min(counts), max(counts) + 1)
    ]


def middle(lengths: Iterable[int]) -> float:
    """The median."""
    return median(lengths)


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
