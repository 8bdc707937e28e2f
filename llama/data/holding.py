"""Which examples of a data set are held out of training, by what they say and by the seed.

The distinct contents are put in an order that follows from content and seed alone, and are held out
from its beginning until as many examples are as were asked for. So equal rows are all held out or
all trained on, in whatever file or place they stand, and rows that come to the data or leave it
change little. The pieces of one text go with its first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llama.data.flat import Array, Examples, shared
from llama.errors import UserError

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class HoldOut:
    """What was asked for."""

    split: float
    """Below 1 a share of the examples; else how many."""
    seed: int

    def count(self, examples: int) -> int:
        """How many of so many examples."""
        return round(self.split * examples) if self.split < 1 else int(self.split)


def held_out(examples: Examples, asked: HoldOut) -> Array:
    """Of each example whether it is held out. Raises UserError where none would be left."""
    wanted = max(1, asked.count(len(examples)))
    rows = examples.rows
    first = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    of_row = np.repeat(first, np.diff(np.append(first, len(rows))))
    contents = examples.contents[of_row]
    order = np.lexsort((contents[:, 1], _mixed(contents[:, 0], asked.seed)))
    begins = np.any(np.diff(contents[order], axis=0) != 0, axis=1)
    ends = np.append(np.flatnonzero(begins) + 1, len(order))
    enough = min(int(np.searchsorted(ends, wanted)), len(ends) - 1)
    if wanted >= len(examples) or enough == len(ends) - 1:
        raise UserError(
            f"--eval_split {asked.split:g}: would hold out all of the {len(examples):,} examples, "
            f"of which {len(ends):,} are distinct, and leave none to train on; give less"
        )
    held = np.zeros(len(examples), bool)
    held[order[: ends[enough]]] = True
    return held


def shared_examples(training: Examples, held: Examples) -> int:
    """How many held-out examples are among the training ones too, id for id."""
    return shared(training.contents, held.contents)


def _mixed(values: Array, seed: int) -> Array:
    """A permutation of the 64-bit numbers that looks random, another one for each seed: the last
    steps of SplitMix64 (Steele, Lea and Flood 2014)."""
    start = np.random.default_rng([seed, len(_MIX)]).integers(0, 2**64, dtype=np.uint64)
    mixed = values ^ start
    for shift, factor in zip((30, 27), _MIX, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
