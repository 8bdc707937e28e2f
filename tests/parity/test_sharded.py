"""A base cut over ranks trains what a whole one does, to the last digit: the same products of the
same bytes in the same order. What it costs on the wire is counted against the least there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama.parallel.sharded import ALIGNED, ROOMS
from tests.parity.sharded_steps import (
    ADDED_UP,
    CASES,
    LAYERS,
    MODEL,
    NOT_A_NUMBER,
    added_up,
)
from tests.support.tiny_runs import torchrun_module

pytestmark = [pytest.mark.slow, pytest.mark.long]


def _found(folder: Path, *argv: str, ranks: int) -> list[dict[str, Any]]:
    out = folder / "found.json"
    done = torchrun_module("tests.parity.sharded_steps", *argv, "--out", out, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return _found(tmp_path_factory.mktemp("two"), "--tensor_parallel", "1", ranks=2)


def test_training_is_equal_to_the_last_digit(two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert rank["equal"] == dict.fromkeys(
            [*CASES, *map(added_up, ADDED_UP), NOT_A_NUMBER], True
        )


def test_shards_of_each_tensor_parallel_rank_are_shared_out(tmp_path: Path) -> None:
    case = "blocks recomputed"
    for rank in _found(tmp_path, "--tensor_parallel", "2", "--only", case, ranks=4):
        assert rank["equal"] == dict.fromkeys([case, added_up(case), NOT_A_NUMBER], True)
        assert rank["steps"]["shares"] == rank["steps"]["whole"] / 2


def test_ranks_share_a_base_in_groups(tmp_path: Path) -> None:
    """Two bases over four ranks, each of which takes its own rows: nothing of a base crosses from
    one group to the other, and the step is that of four ranks with whole bases."""
    case = "blocks recomputed"
    for rank in _found(tmp_path, "--shard_base", "2", "--only", case, ranks=4):
        assert rank["equal"] == dict.fromkeys([case, added_up(case), NOT_A_NUMBER], True)
        found = rank["steps"]
        assert found["shares"] == found["whole"] / 2
        twice = 2 * (LAYERS - ROOMS) * found["block"]
        assert found["received"] == (2 * found["vocabulary"] + twice) / 2
        assert found["elements_read"] < 1.05 * MODEL.parameter_count() / 2


def test_the_wire_carries_no_more_than_each_part_of_the_base_twice(
    two: list[dict[str, Any]],
) -> None:
    """(n-1)/n of the base twice in a micro-batch is the most: embedding and head come once, and
    what still lies there when a pass turns round not at all."""
    for rank in two:
        found = rank["steps"]
        assert found["received"] < 2 * found["whole"] / 2
        twice = 2 * (LAYERS - ROOMS) * found["block"]
        assert found["received"] == (2 * found["vocabulary"] + twice) / 2


def test_a_rank_keeps_its_share_and_reads_it_alone(two: list[dict[str, Any]]) -> None:
    base = 4 * MODEL.parameter_count()
    for rank in two:
        found = rank["steps"]
        assert found["shares"] == found["whole"] / 2
        assert base <= found["whole"] <= base + 20 * LAYERS * ALIGNED  # each parameter filled up
        assert found["rooms"] == ROOMS * found["block"], "embedding and head are let go"
        assert found["parameters"] == 4 * MODEL.dim, "the final norm lies whole on each"
        assert found["elements_read"] < 1.05 * MODEL.parameter_count() / 2
