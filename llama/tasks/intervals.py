"""How sure a share of right answers is, and the difference of two on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""Deviations of a normal distribution that hold 95% of it."""


@dataclass(frozen=True)
class Share:
    """A share of right answers, with its 95% interval."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927."""
        middle = self.value + Z * Z / (2 * self.of)
        spread = Z * math.sqrt(self.value * (1 - self.value) / self.of + (Z / (2 * self.of)) ** 2)
        scale = 1 + Z * Z / self.of
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True)
class Difference:
    """The share of the second less that of the first, both asked the same questions."""

    both: int
    first_alone: int
    second_alone: int
    neither: int

    @property
    def value(self) -> float:
        return (self.second_alone - self.first_alone) / self._of

    @property
    def interval(self) -> tuple[float, float]:
        """95%, of Newcombe, "Improved Confidence Intervals for the Difference between Binomial
        Proportions Based on Paired Data", 1998, method 10: Wilson's intervals of the two shares,
        and how the two go together."""
        second = Share(self.both + self.second_alone, self._of)
        first = Share(self.both + self.first_alone, self._of)
        (low2, high2), (low1, high1) = second.interval, first.interval
        phi = self._phi()

        def spread(a: float, b: float) -> float:
            return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

        below = spread(second.value - low2, high1 - first.value)
        above = spread(high2 - second.value, first.value - low1)
        return self.value - below, self.value + above

    @property
    def p_value(self) -> float:
        """Of McNemar's test, exact and two-sided: the chance that questions which only one of the
        two answers rightly part at least so unevenly, were they as likely either way."""
        discordant = self.first_alone + self.second_alone
        fewer = min(self.first_alone, self.second_alone)
        tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**discordant)

    @property
    def _of(self) -> int:
        return self.both + self.first_alone + self.second_alone + self.neither

    def _phi(self) -> float:
        """The correlation of the two, with Newcombe's correction for continuity."""
        a, b, c, d = self.both, self.second_alone, self.first_alone, self.neither
        product = (a + b) * (c + d) * (a + c) * (b + d)
        if product == 0:
            return 0.0
        apart = a * d - b * c
        if apart > 0:
            apart = max(apart - self._of / 2, 0.0)
        return apart / math.sqrt(product)


def share_of(verdicts: Sequence[bool]) -> Share:
    """The share of right answers."""
    return Share(sum(verdicts), len(verdicts))


def difference_of(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """The difference between two that were asked the same questions in the same order."""
    pairs = list(zip(first, second, strict=True))
    return Difference(*(pairs.count(pair) for pair in _CELLS))


_CELLS = ((True, True), (True, False), (False, True), (False, False))
