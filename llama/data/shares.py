"""How often packed rows come in an epoch, where data sets have weights.

Rows of one weight are packed together and are one share. Of a share of n rows with weight w, every
row comes floor(w) times in each epoch. For the rest of w, round(n * rest) rows are taken from an
order that holds every row once, then every row once again in another order, and so on, each epoch
going on where the one before ended:

    n 4, weight 1.5     epoch 0   a b c d   and  c a
                        epoch 1   a b c d   and  d b
                        epoch 2   a b c d   and  b c

So a weight of 1/2 learns each row once in two epochs; and the number of rows is the same in every
epoch. All of it follows from seed and epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from llama.data.flat import Array

_ORDERS = 2
"""Marks the random numbers of these orders, so that they are not those of an epoch's order."""


@dataclass(frozen=True)
class Share:
    """The rows from `start` to before `end`, and their weight."""

    start: int
    end: int
    weight: Fraction = Fraction(1)

    @property
    def whole(self) -> int:
        """How often every row comes."""
        return int(self.weight)

    @property
    def more(self) -> int:
        """How many rows come once more: at least one where any is to."""
        rest = self.weight - self.whole
        return max(1, round((self.end - self.start) * rest)) if rest else 0


def rows_of_epoch(shares: Sequence[Share]) -> int:
    """How many rows an epoch has, repeated ones counted."""
    return sum((share.end - share.start) * share.whole + share.more for share in shares)


def epoch_rows(shares: Sequence[Share], seed: int, epoch: int) -> Array:
    """The indices of an epoch's rows, not yet in the epoch's order."""
    found: list[Array] = []
    for number, share in enumerate(shares):
        found += [np.arange(share.start, share.end)] * share.whole
        if share.more:
            found.append(share.start + _further(share, [seed, _ORDERS, number], epoch))
    return np.concatenate(found)


def _further(share: Share, seeds: list[int], epoch: int) -> Array:
    """Those that come once more, counted from the start of the share."""
    count = share.end - share.start
    first, last = epoch * share.more, (epoch + 1) * share.more
    orders = range(first // count, (last - 1) // count + 1)
    each = [np.random.default_rng([*seeds, order]).permutation(count) for order in orders]
    at = first - orders[0] * count
    return np.concatenate(each)[at : at + share.more]
