"""Data files to packed rows, in one call: read, rendered, linted, packed."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from llama.data.columns import Columns, Renamer
from llama.data.examples import Overlong
from llama.data.findings import Tallied
from llama.data.flat import Array, Examples, repeats
from llama.data.holding import HoldOut, held_out
from llama.data.lint import LintReport, lint
from llama.data.packing import Packed, Packing, digest_of, joined, pack_lengths
from llama.data.records import Problems
from llama.data.rows import Row, rows_of
from llama.data.shares import Share
from llama.data.store.cache import cached
from llama.data.store.entry import Sink
from llama.data.store.keys import key_of
from llama.data.store.making import Making
from llama.data.store.tokenised import Tokenised, tokenise
from llama.data.stream import records_at, unit_of
from llama.files.shards import data_files, hash_of_hashes
from llama.files.weighted import weighted, without_weights
from llama.tokenizer.base import Template, Tokenizer

_PACKING = {"members": "<i8", "starts": "<i8"}


@dataclass(frozen=True)
class Reading:
    """How data files are read, apart from template and tokenizer."""

    seq_len: int
    pack: bool = True
    overlong: Overlong = "drop"
    columns: Columns = ()
    cache: Path | None = None
    """The folder of the cache; None means the user's own."""
    first: int | None = None
    """Take this many rows from the start; None means all."""


@dataclass(frozen=True)
class Prepared:
    """The data of one option, ready to be cut into batches."""

    files: tuple[Path, ...]
    examples: Examples
    """In the order of the rows."""
    packed: Packed
    shares: tuple[Share, ...]
    """How often rows of `packed` come in an epoch."""
    report: LintReport
    sha256: str
    """Of the files in their order."""
    row_numbers: Array
    """Of every row, whether or not it gave an example."""
    places: Array
    """Where each of them begins in its file, as `llama.data.stream` counts."""
    columns: Columns

    def rows_numbered(self, numbers: Sequence[int]) -> list[Row]:
        """The rows of these numbers, in their order, read from their files again. Raises UserError
        where a file has changed."""
        source = self.report.source
        by_file: dict[int, list[int]] = {}
        for number in sorted(set(numbers)):
            by_file.setdefault(bisect_right(source.starts, number - 1) - 1, []).append(number)
        found: dict[int, Row] = {}
        for index, of_file in by_file.items():
            path, start = self.files[index], source.starts[index]
            places = self.places[np.searchsorted(self.row_numbers, of_file)].tolist()
            records = [
                (number - start, record)
                for number, record in zip(of_file, records_at(path, places), strict=True)
            ]
            problems = Problems(path)
            renamer = Renamer(self.columns)
            rows, _ = rows_of(records, unit_of(path), start, renamer, problems)
            problems.raise_any()
            found |= {row.number: row for row in rows}
        return [found[number] for number in numbers]


def prepare(
    paths: Sequence[Path], template: Template, tokenizer: Tokenizer, reading: Reading
) -> Prepared:
    """The data sets at `paths`, which may have weights (`llama.files.weighted`). Raises `UserError`
    with all that is wrong with the files."""
    made, report = _tokenised(paths, template, tokenizer, reading)
    return _prepared(made, made.examples, _weights(paths), report, reading)


def prepare_split(
    paths: Sequence[Path],
    template: Template,
    tokenizer: Tokenizer,
    reading: Reading,
    asked: HoldOut,
) -> tuple[Prepared, Prepared]:
    """The same in two parts: to train on, and held out as `asked`. Weights are of the former."""
    made, report = _tokenised(paths, template, tokenizer, reading)
    held = held_out(made.examples, asked)
    training, rest = (made.examples.take(np.flatnonzero(part)) for part in (~held, held))
    said = f"{len(rest):,} more are held out by --eval_split {asked.split:g}"
    of_training = replace(_report_of(report, training), held_out=said)
    first = _prepared(made, training, _weights(paths), of_training, reading)
    second = _prepared(made, rest, None, _plain(_report_of(report, rest), rest), reading)
    kept = np.isin(second.row_numbers, rest.rows)
    numbers, places = second.row_numbers[kept], second.places[kept]
    return first, replace(second, row_numbers=numbers, places=places)


def _tokenised(
    paths: Sequence[Path], template: Template, tokenizer: Tokenizer, reading: Reading
) -> tuple[Tokenised, LintReport]:
    making = Making(template, tokenizer, reading.seq_len, reading.overlong, reading.columns)
    made = tokenise(without_weights(paths), making, reading.cache, reading.first)
    return made, lint(made.tally, made.source, reading.seq_len, reading.overlong)


def _report_of(report: LintReport, examples: Examples) -> LintReport:
    """`report` with the figures of these examples."""
    return replace(
        report,
        examples=len(examples),
        tokens=int(examples.lengths.sum()),
        supervised_tokens=int(examples.supervised.sum()),
        longest=int(examples.lengths.max()),
        duplicates=repeats(examples.contents),
    )


def _plain(report: LintReport, examples: Examples) -> LintReport:
    """`report` of examples to whose rows nothing befell: what did is told of the whole set."""
    nothing: dict[str, Any] = {"truncated": Tallied(), "dropped": None, "skipped": {}}
    nothing |= {"tokens_lost": 0, "cut_unseen": False, "most_ends_lost": False, "findings": ()}
    return replace(report, rows=len(np.unique(examples.rows)), **nothing)


def _weights(paths: Sequence[Path]) -> list[Fraction]:
    """Of each file, the weight of its data set."""
    return [found.weight for found in weighted(paths) for _ in data_files(found.path)]


def _prepared(
    made: Tokenised,
    examples: Examples,
    weights: Sequence[Fraction] | None,
    report: LintReport,
    reading: Reading,
) -> Prepared:
    """`examples` of those made, packed; `weights` are of the files, None where all weigh alike."""
    packed, shares = _packed(made, examples, weights or [Fraction(1)], reading)
    return Prepared(
        files=made.source.files,
        examples=examples,
        packed=packed,
        shares=shares,
        report=report,
        sha256=hash_of_hashes(made.sha256),
        row_numbers=made.entry.arrays["numbers"],
        places=made.entry.arrays["places"],
        columns=reading.columns,
    )


def _packed(
    made: Tokenised, examples: Examples, weights: Sequence[Fraction], reading: Reading
) -> tuple[Packed, tuple[Share, ...]]:
    """The examples of each weight packed by themselves; kept where the examples are."""
    of_example = np.zeros(len(examples), np.int64)
    if len(weights) > 1:
        files = np.searchsorted(np.array(made.source.starts), examples.rows - 1, side="right") - 1
        levels = sorted(set(weights))
        of_example = np.array([levels.index(weight) for weight in weights])[files]
    else:
        levels = list(weights)
    groups = [np.flatnonzero(of_example == level) for level in range(len(levels))]
    filled = [(group, level) for group, level in zip(groups, levels, strict=True) if len(group)]

    def pack() -> tuple[Packing, list[int]]:
        lengths = examples.lengths
        found = [pack_lengths(lengths[group], reading.seq_len, reading.pack) for group, _ in filled]
        whole = joined(
            Packing(group[packing.members], packing.starts)
            for (group, _), packing in zip(filled, found, strict=True)
        )
        return whole, np.cumsum([len(packing.starts) - 1 for packing in found]).tolist()

    def fill(sink: Sink, alone: bool) -> dict[str, Any]:
        packing, ends = pack()
        sink.add({"members": packing.members, "starts": packing.starts})
        return {"ends": ends, "digest": digest_of(Packed(examples, packing))}

    if made.cache is None:
        packing, ends = pack()
        packed = Packed(examples, packing)
    else:
        folder, key = made.cache
        chosen = hashlib.sha256(np.ascontiguousarray(examples.chosen).tobytes()).hexdigest()
        key = key_of(
            examples=key, chosen=chosen, weights=list(map(str, weights)), pack=reading.pack
        )
        entry = cached(folder, key, _PACKING, fill)
        packing, ends = Packing(**entry.arrays, held=entry.held), entry.facts["ends"]
        packed = Packed(examples, packing, entry.facts["digest"])
    starts = [0, *ends[:-1]]
    shares = zip(starts, ends, filled, strict=True)
    return packed, tuple(Share(start, end, level) for start, end, (_, level) in shares)
