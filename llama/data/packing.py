"""Packs examples into rows of bounded length, so that no computation goes to padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np

from llama.data.flat import Array, Examples
from llama.data.types import Example

PackedRow = list[Example]
"""Documents of one row of a batch; none sees another."""


@dataclass(frozen=True)
class Packing:
    """Which examples share a row: row r holds those at `members[starts[r]:starts[r + 1]]`."""

    members: Array
    starts: Array
    held: Any = None
    """What keeps the files of the arrays in place while this is there."""


def pack_lengths(lengths: Sequence[int] | Array, seq_len: int, pack: bool = True) -> Packing:
    """Rows of at most `seq_len` tokens, by first-fit decreasing: from the longest example on, each
    goes into the first row that has room. With `pack=False`, a row for each example.

        seq_len 8, lengths      a 3, b 6, c 5, d 2, e 4
        longest first           b 6, c 5, e 4, a 3, d 2
        rows                    b b b b b b d d
                                c c c c c a a a
                                e e e e

    The result depends on the lengths alone; the order of rows is drawn anew each epoch elsewhere.
    """
    count = len(lengths)
    if not pack:
        return Packing(np.arange(count), np.arange(count + 1))
    sizes = np.asarray(lengths, np.int64)
    by_length = np.argsort(-sizes, kind="stable")
    room = _Room(count, seq_len)
    row_of = np.fromiter((room.take(size) for size in sizes[by_length].tolist()), np.int64, count)
    rows = int(row_of.max(initial=-1)) + 1
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return Packing(by_length[np.argsort(row_of, kind="stable")], starts)


def joined(packings: Iterable[Packing]) -> Packing:
    """The rows of all, one after the other; their members index the same examples."""
    parts = list(packings)
    ends = np.cumsum([0, *(len(part.members) for part in parts)])
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Packing(
        np.concatenate([part.members for part in parts]),
        np.append(np.concatenate(starts), ends[-1]),
    )


class Packed(Sequence[PackedRow]):
    """Rows of `examples`, each read when it is asked for."""

    def __init__(
        self, examples: Sequence[Example], packing: Packing, digest: str | None = None
    ) -> None:
        self.examples = examples
        self.packing = packing
        self._digest = digest

    def __len__(self) -> int:
        return len(self.packing.starts) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> PackedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedRow]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PackedRow | list[PackedRow]:
        every = range(len(self))[index]
        if isinstance(every, range):
            return [self._row(row) for row in every]
        return self._row(every)

    def _row(self, row: int) -> PackedRow:
        start, end = self.packing.starts[row : row + 2]
        return [self.examples[int(at)] for at in self.packing.members[start:end]]

    @property
    def digest(self) -> str:
        """As `digest_of` gives it, found once."""
        if self._digest is None:
            self._digest = digest_of(self)
        return self._digest


def digest_of(rows: Sequence[PackedRow]) -> str:
    """SHA-256, in hex, of every token id and label in order: what the tokenizer and the template
    made of the data."""
    whole = hashlib.sha256()
    for row in rows:
        for example in row:
            numbers = np.array([example.input_ids, example.labels], dtype="<i8")
            whole.update(numbers.shape[1].to_bytes(8, "little"))
            whole.update(numbers.tobytes())
    return whole.hexdigest()


def tokens_and_labels(rows: Sequence[PackedRow]) -> tuple[Array, Array]:
    """Of each row, its tokens and how many of its positions have a label."""
    if isinstance(rows, Packed) and isinstance(rows.examples, Examples):
        found = (
            _sums(of, rows.packing) for of in (rows.examples.lengths, rows.examples.supervised)
        )
        tokens, supervised = found
        return tokens, supervised
    of_example: tuple[Callable[[Example], int], ...] = (
        lambda example: len(example.input_ids),
        lambda example: example.supervised,
    )
    tokens, supervised = (np.array([sum(map(of, row)) for row in rows]) for of in of_example)
    return tokens, supervised


def _sums(values: Array, packing: Packing) -> Array:
    whole = np.zeros(len(packing.members) + 1, np.int64)
    np.cumsum(values[packing.members], out=whole[1:])
    return np.diff(whole[packing.starts])


class _Room:
    """Room left in each of `count` rows, as a tree of maxima: the first row with enough is found in
    log(count) steps, where a search through all rows takes minutes at 50,000 examples."""

    def __init__(self, count: int, capacity: int) -> None:
        self._leaves = 1 << max(count - 1, 0).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """Take `length` from the first row that has it, and return that row's index."""
        assert length <= self._most[1], "an example is longer than a row"
        node = 1
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= length else 2 * node + 1
        self._most[node] -= length
        index = node - self._leaves
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
        return index
