"""Ranks that share the tokens of a row train what one process does, with packed rows, documents of
uneven lengths, dropout and accumulation; what they send is what docs/scaling.md says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.parity.sequence_steps import BOUNDS, BROKEN, HEADS
from tests.parity.topology_table import LIMITS
from tests.support.closeness import SMALL_MODEL, sums_of
from tests.support.tiny_runs import torchrun_module

pytestmark = pytest.mark.slow

RANKS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank."""
    out = tmp_path_factory.mktemp("sequence") / "found.json"
    done = torchrun_module("tests.parity.sequence_steps", "--out", out, ranks=RANKS)
    assert done.returncode == 0, done.stderr
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(RANKS)]


def test_attention_of_some_heads_at_a_time_is_the_whole(found: list[dict[str, Any]]) -> None:
    """And its gradients: sums of at most 19 tokens, and of 8 query heads to a kv head."""
    for rank in found:
        assert len(rank["attended"]) == len(HEADS) * len(BOUNDS)
        for name, apart in rank["attended"].items():
            assert apart <= sums_of(32), (name, apart)


def test_equal_shares_are_traded_as_deepspeed_does(found: list[dict[str, Any]]) -> None:
    """Bit for bit; its own exchange takes no others."""
    assert all(rank["as DeepSpeed"] for rank in found)


def test_loss_and_every_gradient_are_one_process_s(found: list[dict[str, Any]]) -> None:
    """Of one pass over a row of four documents, with dropout, blocks computed again."""
    for rank in found:
        assert len(rank["gradients"]) == 1 + 2 * 7 * 2  # A and B of seven layers in each block
        for name, apart in rank["gradients"].items():
            assert apart <= SMALL_MODEL, (name, apart)


def test_every_way_trains_what_one_process_does(found: list[dict[str, Any]]) -> None:
    for row in found[0]["rows"]:
        assert row["sequence_parallel"] == RANKS and row["replicas_equal"], row
        assert all(row[what] <= limit for what, limit in LIMITS.items()), row
    assert {row["zero_stage"] for row in found[0]["rows"]} == {1, 3}
    assert {row["accumulation"] for row in found[0]["rows"]} == {1, 3}
    assert {row["shard_base"] for row in found[0]["rows"]} == {False, True}


def test_the_wire_carries_what_the_formula_says(found: list[dict[str, Any]]) -> None:
    """To the byte, over all ranks: shares are not of one length."""
    for sent in found[0]["wire"].values():
        assert sent["sent"] == sent["formula"] > 0


def test_verify_sees_what_would_train_something_else(found: list[dict[str, Any]]) -> None:
    assert found[0]["seen"] == {name: name == "nothing" for name in BROKEN}
