"""`--checkpointing auto`: how much of each block memory can keep for the backward pass.

Every level of `Kept` saves about the same work for its bytes (attention's output more than the
rest), so the levels are filled one after the other, each in as many blocks as fit: the last blocks
first, whose share is freed before the first ones need room to compute theirs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    beside: int
    """The most that lives beyond what the blocks keep, wherever in the step that is."""


def choose(sizes: Sizes, blocks: int, available: int) -> list[Kept]:
    """What each of `blocks` keeps, so that a step takes at most `available` bytes; the least
    everywhere where even that does not fit."""
    least, *_ = sizes.kept
    kept = [least] * blocks
    left = available - sizes.beside - blocks * sizes.kept[least]
    for below, level in pairwise(sizes.kept):
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
