"""`--checkpointing auto`: how much of each block memory can keep for the backward pass.

Every level of `Kept` saves about the same work for its bytes (attention's output more than the
rest), so the levels are filled one after the other, each in as many blocks as fit: the last blocks
first, whose share is freed before the first ones need room to compute theirs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llama.fused.block import GATE_UP, QKV
from llama.model.config import LINEARS, ModelConfig
from llama.model.kept import Kept

PLAIN = (Kept.INPUT, Kept.FFN_INPUTS, Kept.ALL)
"""What the plain path knows: `block`, `ffn` and `none`."""
LOSS_BYTES = 2**28
"""Logits and their gradients, a chunk at a time."""
AGAIN = {
    Kept.INPUT: (*QKV, "wo", *GATE_UP),
    Kept.ATTENTION: (*QKV, "wo", *GATE_UP),
    Kept.MIDDLE: (*QKV, *GATE_UP),
    Kept.FFN_INPUTS: GATE_UP,
    Kept.ALL: (),
}
"""The products that are computed again."""


@dataclass(frozen=True)
class Sizes:
    """What one token takes in one block of a rank, in bytes."""

    config: ModelConfig
    bytes_each: int
    """Of an activation."""
    tensor_parallel: int
    fused: bool
    dropped: tuple[str, ...]
    """Layers with an adapter; the plain path keeps their dropped inputs and masks."""
    trained: bool = False
    """Whether the layers' own weights train: their inputs are then kept for their gradients."""

    def _heads(self, heads: int) -> int:
        return heads * self.config.head_dim // self.tensor_parallel * self.bytes_each

    def _attention(self) -> int:
        config = self.config
        return self._heads(config.n_heads) + 4 * config.n_heads // self.tensor_parallel

    def kept(self, level: Kept) -> int:
        config, width = self.config, self.config.dim * self.bytes_each
        parts = [
            width,
            self._attention(),
            width,
            self._heads(config.n_heads + 2 * config.n_kv_heads),
            2 * config.ffn_dim * self.bytes_each // self.tensor_parallel,
        ]
        extra = 0
        if not self.fused and level > Kept.INPUT:
            inputs = (config.linear_shape(name)[1] for name in self.dropped)
            extra = sum(inputs) * (self.bytes_each + 1)
        if self.trained and level > Kept.INPUT:  # both norms' outputs, and that of SwiGLU
            extra += 2 * width + config.ffn_dim * self.bytes_each // self.tensor_parallel
        return sum(parts[: level + 1]) + extra

    def working(self) -> int:
        """While one block goes back: all of it, and the gradients beside it."""
        config, width = self.config, self.config.dim * self.bytes_each
        gradients = (
            4 * width
            + self._heads(2 * config.n_heads + 2 * config.n_kv_heads)
            + 4 * config.n_heads * config.head_dim // self.tensor_parallel
            + config.ffn_dim * self.bytes_each // self.tensor_parallel * (1 if self.fused else 3)
        )
        return self.kept(Kept.ALL) + gradients


def choose(sizes: Sizes, tokens: int, available: int) -> list[Kept]:
    """What each block keeps of `tokens` tokens, so that a step takes at most about `available`
    bytes; the least everywhere where even that does not fit."""
    levels = list(Kept) if sizes.fused else list(PLAIN)
    blocks = sizes.config.n_layers
    kept = [Kept.INPUT] * blocks
    left = available - LOSS_BYTES - tokens * sizes.working()
    left -= blocks * tokens * sizes.kept(Kept.INPUT)
    for below, level in pairwise(levels):
        more = tokens * (sizes.kept(level) - sizes.kept(below))
        fit = min(kept.count(below), max(0, left) // more)
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
