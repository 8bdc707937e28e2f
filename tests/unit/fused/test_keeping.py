"""How much of each block `--checkpointing auto` keeps."""

from __future__ import annotations

import pytest

from llama.fused.keeping import PLAIN, Sizes, choose, operations_again, summary, within_host
from llama.model.kept import Kept
from llama.model.presets import PRESETS

BLOCKS = 32
BYTES = {Kept.INPUT: 10, Kept.ATTENTION: 21, Kept.MIDDLE: 31, Kept.FFN_INPUTS: 64, Kept.ALL: 120}
FUSED = Sizes(BYTES, dict.fromkeys(BYTES, 500))
PLAINLY = Sizes({level: BYTES[level] for level in PLAIN}, dict.fromkeys(PLAIN, 500))
ON_HOST = Sizes({Kept.HOST: 0} | BYTES, dict.fromkeys(Kept, 500))


def taken(sizes: Sizes, kept: list[Kept]) -> int:
    return sum(sizes.kept[level] for level in kept) + max(sizes.beside[level] for level in kept)


@pytest.mark.parametrize("sizes", [FUSED, PLAINLY, ON_HOST], ids=["fused", "plain", "host"])
@pytest.mark.parametrize("available", [830, 1000, 1900, 3000])
def test_memory_is_filled_and_not_overrun(sizes: Sizes, available: int) -> None:
    kept = choose(sizes, BLOCKS, available)
    assert taken(sizes, kept) <= available
    assert kept == sorted(kept), "the last blocks keep more"
    assert set(kept) <= set(sizes.kept) and len(set(kept)) <= 3
    levels = list(sizes.kept)
    block = max(i for i, level in enumerate(kept) if level == kept[0])
    following = levels[levels.index(kept[0]) + 1]
    more = [*kept[:block], following, *kept[block + 1 :]]
    assert taken(sizes, more) > available, "one more block would not fit"


def test_all_is_kept_where_there_is_room_and_the_least_where_there_is_none() -> None:
    assert choose(FUSED, BLOCKS, 500 + BLOCKS * 120) == [Kept.ALL] * BLOCKS
    assert choose(FUSED, BLOCKS, 100) == [Kept.INPUT] * BLOCKS
    assert choose(ON_HOST, BLOCKS, 100) == [Kept.HOST] * BLOCKS


def test_host_memory_is_taken_for_those_blocks_that_the_device_has_no_room_for() -> None:
    kept = choose(ON_HOST, BLOCKS, 500 + 45)
    assert kept == [Kept.HOST] * (BLOCKS - 4) + [Kept.INPUT] * 4
    assert within_host(kept, 10, 280) == kept
    assert within_host(kept, 10, 279) == [Kept.HOST] * 27 + [Kept.INPUT] * 5
    assert within_host(kept, 10, -5) == [Kept.INPUT] * BLOCKS
    assert within_host([Kept.INPUT, Kept.ALL], 10, 5) == [Kept.INPUT, Kept.ALL]


def test_more_than_inputs_is_not_kept_where_that_would_take_more_beside_them() -> None:
    """Over long rows the middle of a block, whole, may be more than all that there is."""
    beside = {level: 500 if level <= Kept.INPUT else 900 for level in Kept}
    sizes = Sizes(ON_HOST.kept, beside)
    kept = choose(sizes, BLOCKS, 500 + 45)
    assert kept == [Kept.HOST] * (BLOCKS - 4) + [Kept.INPUT] * 4
    assert choose(sizes, BLOCKS, 890) == [Kept.INPUT] * BLOCKS
    assert choose(sizes, BLOCKS, 900 + BLOCKS * 120) == [Kept.ALL] * BLOCKS


def test_operations_again_are_those_of_the_products_left_out() -> None:
    config = PRESETS["llama-7b"]
    dim, ffn = config.dim, config.ffn_dim
    assert operations_again(config, [Kept.ALL] * 32) == 0
    assert operations_again(config, [Kept.FFN_INPUTS]) == 2 * 2 * dim * ffn
    assert operations_again(config, [Kept.MIDDLE]) == 2 * (2 * dim * ffn + 3 * dim * dim)
    assert operations_again(config, [Kept.INPUT] * 2) == 4 * (2 * dim * ffn + 4 * dim * dim)


def test_the_summary_says_how_many_keep_what() -> None:
    kept = [Kept.INPUT] * 3 + [Kept.FFN_INPUTS] * 2
    assert summary(kept) == "blocks keep ffn inputs: 2, input: 3"
