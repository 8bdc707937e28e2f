"""Intervals against published ones, and tests against their definition."""

from __future__ import annotations

from itertools import product

import pytest

from llama.tasks.intervals import Difference, Share, difference_of, share_of

PUBLISHED = 5e-5
"""They are printed with four digits."""


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right: int, of: int, low: float, high: float) -> None:
    share = Share(right, of)
    assert share.interval == pytest.approx((low, high), abs=PUBLISHED)
    mirrored = Share(of - right, of).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=PUBLISHED)


def test_the_paired_difference() -> None:
    # Newcombe, "Improved confidence intervals ... paired data", 1998, table II, method 10.
    found = Difference(both=20, first_alone=2, second_alone=12, neither=16)
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0562, 0.3292), abs=PUBLISHED)
    assert Difference(20, 12, 2, 16).interval == pytest.approx((-0.3292, -0.0562), abs=PUBLISHED)


@pytest.mark.parametrize(("first", "second"), [(2, 12), (0, 5), (3, 3), (0, 0), (1, 0)])
def test_mcnemar_by_counting_every_way(first: int, second: int) -> None:
    """Of all ways in which that many coins can fall, those that fall as unevenly."""
    uneven = abs(first - second)
    ways = [abs(2 * sum(coins) - len(coins)) for coins in product((0, 1), repeat=first + second)]
    expected = sum(way >= uneven for way in ways) / len(ways)
    assert Difference(7, first, second, 9).p_value == pytest.approx(expected)


def test_from_verdicts() -> None:
    first = [True, True, False, False, False]
    second = [True, False, True, True, False]
    assert share_of(second) == Share(3, 5)
    assert difference_of(first, second) == Difference(1, 1, 2, 1)
