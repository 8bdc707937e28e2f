"""Examples in flat arrays, which may lie in a file that is mapped: no number of them fills memory.

examples    a b c | d e            of which b and c, and e, are supervised
tokens      -1-a b c -1-d e        int32: the id where supervised, else below 0
offsets     0 3 5                  int64: where each begins, and the end
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, SupportsIndex, overload

import numpy as np

from llama.data.types import IGNORE, Example

DTYPES: dict[str, str] = {
    "tokens": "<i4",
    "lengths": "<i4",
    "supervised": "<i4",
    "rows": "<i8",
    "contents": "<u8",
    "numbers": "<i8",
    "places": "<i8",
}
"""Of each array, by the name of its file. Per example: lengths, supervised (how many predicted
positions are), rows (the number of its row), contents (two numbers that stand for its ids). Per
row: numbers, and places (where in its file it begins; `llama.data.stream` says what is counted)."""
SCANNED = 1 << 22
"""Tokens that are looked at at a time."""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Flat:
    """The arrays of a data set, each as `DTYPES` says; `offsets` has one more than there are
    examples."""

    tokens: Array
    offsets: Array
    supervised: Array
    rows: Array
    contents: Array
    """[n, 2]"""
    largest_id: int
    held: Any = None
    """What keeps their files in place while these are there."""


class Examples(Sequence[Example]):
    """Examples of `flat` in their order: all, or those that `chosen` indexes."""

    def __init__(self, flat: Flat, chosen: Array | None = None) -> None:
        self.flat = flat
        self.chosen = np.arange(len(flat.rows)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._example(int(at)) for at in self.chosen[index]]
        return self._example(int(self.chosen[index]))

    def _example(self, at: int) -> Example:
        flat = self.flat
        signed = np.asarray(flat.tokens[flat.offsets[at] : flat.offsets[at + 1]])
        masked = signed < 0
        ids = np.where(masked, -1 - signed, signed)
        return Example(ids.tolist(), np.where(masked, IGNORE, signed).tolist(), int(flat.rows[at]))

    def take(self, chosen: Array) -> Examples:
        """Those at the indices `chosen` of these."""
        return Examples(self.flat, self.chosen[chosen])

    def using(self, least: int) -> dict[int, list[int]]:
        """Ids from `least` on that these use, each with the rows that do."""
        found: dict[int, dict[int, None]] = {}
        if self.flat.largest_id < least:
            return {}
        tokens, offsets = self.flat.tokens, self.flat.offsets
        for start in range(0, len(tokens), SCANNED):
            block = tokens[start : start + SCANNED]
            for at in np.flatnonzero((block >= least) | (block < -least)):
                token = int(block[at])
                example = int(np.searchsorted(offsets, start + at, side="right")) - 1
                id_ = token if token >= 0 else -1 - token
                found.setdefault(id_, {})[int(self.flat.rows[example])] = None
        return {id_: list(rows) for id_, rows in found.items()}

    @property
    def lengths(self) -> Array:
        """Tokens of each."""
        return np.diff(self.flat.offsets)[self.chosen]

    @property
    def supervised(self) -> Array:
        """Predicted positions of each that have a label."""
        return self.flat.supervised[self.chosen]

    @property
    def rows(self) -> Array:
        """The number of the row of each."""
        return self.flat.rows[self.chosen]

    @property
    def contents(self) -> Array:
        """[n, 2] of uint64: equal where the ids are."""
        return self.flat.contents[self.chosen]


def flatten(examples: Sequence[Example]) -> dict[str, Array]:
    """The arrays of `examples`, by name."""
    lengths = [len(example.input_ids) for example in examples]
    ids = _laid_end_to_end([example.input_ids for example in examples])
    labels = _laid_end_to_end([example.labels for example in examples])
    masked = labels == IGNORE
    assert ((labels == ids) | masked).all(), "a label is the id of its position"
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    contents = (
        blake2b(ids[end - length : end].data, digest_size=16).digest()
        for length, end in zip(lengths, ends, strict=True)
    )
    return {
        "tokens": np.where(masked, -1 - ids, ids),
        "lengths": np.array(lengths, DTYPES["lengths"]),
        "supervised": np.array([e.supervised for e in examples], DTYPES["supervised"]),
        "rows": np.array([example.row for example in examples], DTYPES["rows"]),
        "contents": np.frombuffer(b"".join(contents), DTYPES["contents"]),
    }


def _laid_end_to_end(lists: Iterable[list[int]]) -> Array:
    return np.fromiter(chain.from_iterable(lists), DTYPES["tokens"])


def flat_of(arrays: dict[str, Array], largest_id: int, held: Any = None) -> Flat:
    """From arrays as `flatten` gives them, whose largest id is known."""
    offsets = np.zeros(len(arrays["lengths"]) + 1, np.int64)
    np.cumsum(arrays["lengths"], out=offsets[1:])
    contents = arrays["contents"].reshape(-1, 2)
    return Flat(
        tokens=arrays["tokens"],
        offsets=offsets,
        supervised=arrays["supervised"],
        rows=arrays["rows"],
        contents=contents,
        largest_id=largest_id,
        held=held,
    )


def repeats(contents: Array) -> int:
    """How many of `contents` an earlier one equals."""
    return len(contents) - len(np.unique(_as_one(contents)))


def again(contents: Array) -> Array:
    """Of each of `contents` whether an earlier one equals it."""
    _, first = np.unique(_as_one(contents), return_index=True)
    found = np.ones(len(contents), bool)
    found[first] = False
    return found


def among(one: Array, other: Array) -> Array:
    """Of each of `other` whether it is in `one` too."""
    return np.isin(_as_one(other), _as_one(one))


def shared(one: Array, other: Array) -> int:
    """How many of `other` are in `one` too."""
    return int(among(one, other).sum())


def _as_one(contents: Array) -> Array:
    """Each pair as one value that numpy can sort."""
    pair = [("first", "<u8"), ("second", "<u8")]
    return np.ascontiguousarray(contents).view(pair).reshape(-1)
