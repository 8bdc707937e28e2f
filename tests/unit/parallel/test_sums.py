"""Rows of a sum in parts, of which one is on its way while the other is made."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llama.parallel.sums import AS_LONG, PART, WHOLE, parts_of


@pytest.mark.parametrize("number", [1, PART, 2 * PART, 2 * PART + 7, 8000, 8192])
@pytest.mark.parametrize("inputs", [64, AS_LONG, 7168, 14336])
def test_parts_are_all_rows_in_their_order(number: int, inputs: int) -> None:
    parts = parts_of(slice(5, 5 + number), inputs)
    assert parts[0].start == 5 and parts[-1].stop == 5 + number
    assert all(one.stop == other.start for one, other in pairwise(parts))
    if len(parts) > 1:
        assert min(part.stop - part.start for part in parts) >= PART
        assert (parts[1].stop - parts[1].start) % WHOLE == 0


def test_the_second_is_made_in_the_time_in_which_the_first_is_copied() -> None:
    """A product of twice the inputs takes twice as long as the copy of its result, one of few none
    that could be hid behind."""
    sizes = {n: [p.stop - p.start for p in parts_of(slice(0, 9216), n)] for n in (1, 2 * AS_LONG)}
    assert sizes == {1: [4608, 4608], 2 * AS_LONG: [6144, 3072]}
