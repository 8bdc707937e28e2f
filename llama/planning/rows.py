"""Of packed rows the micro-batches that a plan goes by: none is larger than the first, and the
second is as a run sees them in the mean. A run draws the order of its rows anew each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama.data.packing import PackedRow

Documents = tuple[tuple[int, ...], int]
"""The lengths of a micro-batch's documents, and how many of its positions have a label."""


def largest_batch(rows: Sequence[PackedRow], micro_batch: int) -> Documents:
    """The longest rows, with the labels of those that have most: no micro-batch is larger."""
    longest = sorted(rows, key=_tokens, reverse=True)[:micro_batch]
    most = sorted(map(_supervised, rows), reverse=True)[:micro_batch]
    return _lengths(longest), sum(most)


def mean_batch(rows: Sequence[PackedRow], micro_batch: int) -> Documents:
    """Rows of about the mean length and labels: those in the middle, by length."""
    by_length = sorted(rows, key=_tokens)
    count = min(micro_batch, len(rows))
    start = (len(rows) - count) // 2
    labels = sum(map(_supervised, rows)) * count / len(rows)
    return _lengths(by_length[start : start + count]), round(labels)


def _lengths(rows: Iterable[PackedRow]) -> tuple[int, ...]:
    return tuple(len(example.input_ids) for row in rows for example in row)


def _tokens(row: PackedRow) -> int:
    return sum(len(example.input_ids) for example in row)


def _supervised(row: PackedRow) -> int:
    return sum(example.supervised for example in row)
