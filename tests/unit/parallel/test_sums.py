"""Rows of a sum in parts, of which one is on its way while the next is made."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llama.parallel.sums import AS_LONG, MOST, PART, TILE, parts_of, rows_at_once


@pytest.mark.parametrize("at_once", [PART // 2, 384, PART, 3 * PART])
@pytest.mark.parametrize("number", [1, PART, 2 * PART, 2 * PART + 7, 2816, 5569, 8000, 8192])
@pytest.mark.parametrize("inputs", [64, AS_LONG, 7168, 14336])
def test_parts_are_all_rows_in_their_order(number: int, inputs: int, at_once: int) -> None:
    parts = parts_of(slice(5, 5 + number), inputs, at_once)
    assert parts[0].start == 5 and parts[-1].stop == 5 + number
    assert all(one.stop == other.start for one, other in pairwise(parts))
    assert 1 <= len(parts) <= MOST
    sizes = [part.stop - part.start for part in parts]
    if len(parts) > 1:
        assert min(sizes) >= PART
        assert all(size % at_once == 0 for size in sizes[1:])
    elif inputs <= AS_LONG:  # not even two parts
        assert number < 2 * max(PART, at_once * -(-PART // at_once))


def test_the_second_is_made_in_the_time_in_which_the_first_is_copied() -> None:
    """A product of twice the inputs takes twice as long as the copy of its result; one that takes
    no longer than the copy is made in equal parts, of what a GPU makes at once."""
    sizes = {
        inputs: [part.stop - part.start for part in parts_of(slice(0, 9216), inputs, 1024)]
        for inputs in (1, AS_LONG, 2 * AS_LONG)
    }
    equal = [3072, 2048, 2048, 2048]
    assert sizes == {1: equal, AS_LONG: equal, 2 * AS_LONG: [6144, 3072]}


@pytest.mark.parametrize(
    ("width", "multiprocessors", "tiles"),
    [(4096, 132, 8), (8192, 132, 4), (576, 78, 26), (9, 1, 1)],
)
def test_rows_that_a_gpu_makes_at_once(width: int, multiprocessors: int, tiles: int) -> None:
    """As many tiles of rows as all its multiprocessors make, in each of which is all of a row."""
    assert rows_at_once(width, multiprocessors) == TILE[0] * tiles
    assert rows_at_once(10**6, 4) == TILE[0]
