"""What a block keeps of its forward pass for its backward pass."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

Checkpointing = Literal["none", "ffn", "block", "auto"]
"""What is recomputed in the backward pass instead of kept: nothing, each feed-forward (the report's
placement), each whole block (the least memory), or what memory does not hold (`keeping.choose`)."""


class Kept(IntEnum):
    """What of a block is kept for its backward pass; each keeps what those before it do. With the
    bytes per token of half precision, and what need not be computed again."""

    INPUT = 0
    """x: 2 D"""
    ATTENTION = 1
    """The attention's output and log-sum-exp, 2 H E + 4 H: not the attention."""
    MIDDLE = 2
    """The residual stream after the attention, 2 D: not wo's product."""
    FFN_INPUTS = 3
    """q, k, v, 2 (H + 2 K) E: all but the feed-forward's first two products."""
    ALL = 4
    """Those too, 4 F."""


KEPT: dict[Checkpointing, Kept] = {
    "none": Kept.ALL,
    "ffn": Kept.FFN_INPUTS,
    "block": Kept.INPUT,
    "auto": Kept.INPUT,
}
"""`auto` begins with the least, until the memory that is left is known."""
