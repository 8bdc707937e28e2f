"""How much of each block `--checkpointing auto` keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama.fused.keeping import LOSS_BYTES, Sizes, choose, operations_again, summary
from llama.model.kept import Kept
from llama.model.presets import PRESETS

GIB = 2**30
SEVEN_B = Sizes(PRESETS["llama-7b"], 2, 1, True, ("wq", "wv"))
TOKENS = 8192


def taken(sizes: Sizes, kept: list[Kept], tokens: int) -> int:
    return tokens * (sum(map(sizes.kept, kept)) + sizes.working()) + LOSS_BYTES


@pytest.mark.parametrize("sizes", [SEVEN_B, replace(SEVEN_B, fused=False)], ids=["fused", "plain"])
@pytest.mark.parametrize("available", [5 * GIB, 9 * GIB, 17 * GIB, 25 * GIB])
def test_memory_is_filled_and_not_overrun(sizes: Sizes, available: int) -> None:
    kept = choose(sizes, TOKENS, available)
    assert taken(sizes, kept, TOKENS) <= available
    assert kept == sorted(kept), "the last blocks keep more"
    levels = list(Kept) if sizes.fused else [Kept.INPUT, Kept.FFN_INPUTS, Kept.ALL]
    assert set(kept) <= set(levels) and len(set(kept)) <= (2 if sizes.fused else 3)
    if kept[0] != Kept.ALL:  # one more block would not fit
        block = max(i for i, level in enumerate(kept) if level == kept[0])
        following = levels[levels.index(kept[0]) + 1]
        more = [*kept[:block], following, *kept[block + 1 :]]
        assert taken(sizes, more, TOKENS) > available


def test_all_is_kept_where_there_is_room_and_the_least_where_there_is_none() -> None:
    assert choose(SEVEN_B, TOKENS, 60 * GIB) == [Kept.ALL] * 32
    assert choose(SEVEN_B, TOKENS, GIB) == [Kept.INPUT] * 32


def test_sizes_of_7b_are_those_measured() -> None:
    """2 x 4096 on an H100: 36.02 GiB with all kept, 15.84 with the input, 17.80 with attention."""
    all_, input_, attention = (
        32 * TOKENS * SEVEN_B.kept(level) / GIB for level in (Kept.ALL, Kept.INPUT, Kept.ATTENTION)
    )
    assert all_ - input_ == pytest.approx(36.02 - 15.84, rel=0.05)
    assert attention - input_ == pytest.approx(17.80 - 15.84, rel=0.05)


def test_a_shard_keeps_its_share_of_what_is_sharded() -> None:
    half = replace(SEVEN_B, tensor_parallel=2)
    whole_rows = 2 * 2 * SEVEN_B.config.dim  # the block's input and middle, on every shard
    kept = SEVEN_B.kept(Kept.ALL)
    assert half.kept(Kept.ALL) - whole_rows == (kept - whole_rows) / 2


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
