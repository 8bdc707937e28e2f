"""Packed rows to the micro-batches of one data-parallel rank, in an order any resume can find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, count, islice

import numpy as np
import torch

from llama.data.packing import PackedRow
from llama.data.shares import Share, epoch_rows, rows_of_epoch
from llama.data.types import IGNORE, Batch
from llama.parallel.sequence import SequenceParallel


class Epochs:
    """Epochs over `rows`, as one data-parallel rank sees them.

    A window is the work of one optimizer step: the next micro_batch x accumulation x size rows of
    the epoch's order, cut into micro-batches. Micro-batch j goes to rank j % size and carries j as
    its `stream`, so every split of the same size x accumulation steps over the same micro-batches:

        window of 8 rows, micro_batch 2      [r0 r1] [r2 r3] [r4 r5] [r6 r7]
        size 1, accumulation 4   rank 0         0       1       2       3
        size 2, accumulation 2   rank 0         0               2
                                 rank 1                 1               3

    An epoch's last window may be shorter; every rank still gets as many micro-batches as the
    others, the missing ones with nothing supervised.
    """

    def __init__(
        self,
        rows: Sequence[PackedRow],
        micro_batch: int,
        accumulation: int,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
        shares: Sequence[Share] = (),
    ) -> None:
        """`shares` cover all `rows`; none means that each row comes once."""
        assert rows and micro_batch > 0 and accumulation > 0 and 0 <= rank < size
        self._rows = rows
        self._micro_batch = micro_batch
        self._window_rows = micro_batch * accumulation * size
        self._rank = rank
        self._size = size
        self._seed = seed
        self._shares = shares or (Share(0, len(rows)),)

    @property
    def windows_per_epoch(self) -> int:
        return -(-rows_of_epoch(self._shares) // self._window_rows)

    def windows(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of this rank, window by window, from window `start` of `epoch` on. The
        order of rows follows from seed and epoch alone."""
        chosen = epoch_rows(self._shares, self._seed, epoch)
        order = chosen[np.random.default_rng([self._seed, epoch]).permutation(len(chosen))]
        for window in range(start, self.windows_per_epoch):
            first = window * self._window_rows
            rows = [self._rows[int(i)] for i in order[first : first + self._window_rows]]
            yield list(eval_batches(rows, self._micro_batch, self._rank, self._size))


def first_windows(epochs: Epochs, number: int) -> list[list[Batch]]:
    """The first `number` windows, epoch after epoch."""
    every = chain.from_iterable(epochs.windows(epoch) for epoch in count())
    return list(islice(every, number))


def eval_batches(
    rows: Sequence[PackedRow], micro_batch: int, rank: int = 0, size: int = 1
) -> Iterator[Batch]:
    """One pass over `rows` in their order: micro-batch j goes to rank j % size, and every rank
    yields the same number."""
    number = -(-len(rows) // micro_batch)
    for stream in range(rank, -(-number // size) * size, size):
        if stream < number:
            yield make_batch(rows[stream * micro_batch : (stream + 1) * micro_batch], stream)
        else:
            yield _nothing_supervised(rows[0], stream)


def make_batch(rows: Sequence[PackedRow], stream: int) -> Batch:
    """The documents of `rows` laid end to end."""
    examples = list(chain.from_iterable(rows))
    lengths = [len(example.input_ids) for example in examples]
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.tensor(list(chain.from_iterable(e.input_ids for e in examples)))
    targets = torch.tensor(list(chain.from_iterable(e.labels for e in examples))).roll(-1)
    starts = torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths))
    targets[ends - 1] = IGNORE  # What follows a document's last token is another document.
    return Batch(
        tokens=tokens,
        positions=torch.arange(len(tokens)) - starts,
        targets=targets,
        boundaries=tuple(accumulate(lengths, initial=0)),
        supervised=int((targets != IGNORE).sum()),
        stream=stream,
    )


def own_part(batch: Batch, sequence: SequenceParallel) -> Batch:
    """Its tokens that are this rank's, with their positions and targets; the boundaries stay those
    of all: a document may begin in one share and end in another."""
    if sequence.size == 1:
        return batch
    own = sequence.own(len(batch.tokens))
    targets = batch.targets[own]
    return replace(
        batch,
        tokens=batch.tokens[own],
        positions=batch.positions[own],
        targets=targets,
        supervised=int((targets != IGNORE).sum()),
    )


def _nothing_supervised(row: PackedRow, stream: int) -> Batch:
    """One document with no target, for a rank that has no rows left but must take the step."""
    batch = make_batch([row[:1]], stream)
    return replace(batch, targets=torch.full_like(batch.targets, IGNORE), supervised=0)
