"""Of packed rows the micro-batches that a plan goes by: none is larger than the first, and the
second is as a run sees them in the mean. A run draws the order of its rows anew each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llama.data.packing import PackedRow, tokens_and_labels

Documents = tuple[tuple[int, ...], int]
"""The lengths of a micro-batch's documents, and how many of its positions have a label."""


def largest_batch(rows: Sequence[PackedRow], micro_batch: int) -> Documents:
    """The longest rows, with the labels of those that have most: no micro-batch is larger."""
    tokens, supervised = tokens_and_labels(rows)
    longest = np.argsort(-tokens, kind="stable")[:micro_batch]
    return _lengths(rows, longest), int(np.sort(supervised)[::-1][:micro_batch].sum())


def mean_batch(rows: Sequence[PackedRow], micro_batch: int) -> Documents:
    """Rows of about the mean length and labels: those in the middle, by length."""
    tokens, supervised = tokens_and_labels(rows)
    by_length = np.argsort(tokens, kind="stable")
    count = min(micro_batch, len(rows))
    start = (len(rows) - count) // 2
    labels = int(supervised.sum()) * count / len(rows)
    return _lengths(rows, by_length[start : start + count]), round(labels)


def _lengths(rows: Sequence[PackedRow], chosen: Iterable[int]) -> tuple[int, ...]:
    return tuple(len(example.input_ids) for row in chosen for example in rows[int(row)])
