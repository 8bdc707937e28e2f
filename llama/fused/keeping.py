"""`--checkpointing auto`: how much of each block memory can keep for the backward pass.

Every level of `Kept` saves about the same work for its bytes (attention's output more than the
rest), so the levels are filled one after the other, each in as many blocks as fit: the last blocks
first, whose share is freed before the first ones need room to compute theirs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from llama.fused.block import GATE_UP, QKV
from llama.model.config import LINEARS, ModelConfig
from llama.model.kept import Kept

PLAIN = (Kept.INPUT, Kept.FFN_INPUTS, Kept.ALL)
"""What the plain path knows: `block`, `ffn` and `none`."""
AGAIN = {
    Kept.HOST: (*QKV, "wo", *GATE_UP),
    Kept.INPUT: (*QKV, "wo", *GATE_UP),
    Kept.ATTENTION: (*QKV, "wo", *GATE_UP),
    Kept.MIDDLE: (*QKV, *GATE_UP),
    Kept.FFN_INPUTS: GATE_UP,
    Kept.ALL: (),
}
"""The products that are computed again."""


@dataclass(frozen=True)
class Sizes:
    """What a step takes for the activations of one micro-batch, in bytes."""

    kept: Mapping[Kept, int]
    """What one block keeps under each level that there is, in rising order of both."""
    beside: Mapping[Kept, int]
    """The most that lives beyond what the blocks keep, wherever in a step of such blocks that
    is. Over long rows it is more where the middle of a block is whole (`tiles`)."""


def choose(sizes: Sizes, blocks: int, available: int) -> list[Kept]:
    """What each of `blocks` keeps, so that a step takes at most `available` bytes; the least
    everywhere where even that does not fit."""
    levels = list(sizes.kept)
    beside = list(accumulate((sizes.beside[level] for level in levels), max))
    kept = [levels[0]] * blocks
    for most in range(len(levels), 0, -1):  # with less at the most, there may be room for more
        kept = _filled(sizes, levels[:most], blocks, available - beside[most - 1])
        if kept[-1] == levels[most - 1]:
            break
    return kept


def within_host(kept: Sequence[Kept], each: int, room: int) -> list[Kept]:
    """The same where the inputs of no more blocks lie in host memory than it has `room` for, `each`
    being of so many bytes: those of the last blocks stay on the device."""
    found, over = list(kept), kept.count(Kept.HOST) - max(0, room) // each
    on_host = [block for block, level in enumerate(kept) if level == Kept.HOST]
    for block in on_host[len(on_host) - max(0, over) :]:
        found[block] = Kept.INPUT
    return found


def _filled(sizes: Sizes, levels: Sequence[Kept], blocks: int, available: int) -> list[Kept]:
    kept = [levels[0]] * blocks
    left = available - blocks * sizes.kept[levels[0]]
    for below, level in pairwise(levels):
        more = sizes.kept[level] - sizes.kept[below]
        fit = min(kept.count(below), max(0, left) // max(more, 1))
        for block in range(blocks - fit, blocks):
            kept[block] = level
        left -= fit * more
    return kept


def operations_again(config: ModelConfig, kept: Sequence[Kept]) -> float:
    """Floating-point operations a token that the products computed again take."""
    sizes = {name: config.linear_shape(name) for name in LINEARS}
    return 2.0 * sum(
        rows * columns for level in kept for rows, columns in (sizes[n] for n in AGAIN[level])
    )


def summary(kept: Sequence[Kept]) -> str:
    """As `12 blocks keep all, 20 input`."""
    counts = Counter(kept)
    return "blocks keep " + ", ".join(
        f"{level.name.lower().replace('_', ' ')}: {counts[level]}"
        for level in reversed(Kept)
        if counts[level]
    )
