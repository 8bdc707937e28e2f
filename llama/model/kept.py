"""What a block keeps of its forward pass for its backward pass."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

Checkpointing = Literal["none", "ffn", "block", "host", "auto"]
"""What is recomputed in the backward pass instead of kept: nothing, each feed-forward (the report's
placement), each whole block, the same with the blocks' inputs in host memory where blocks run fused
(the least memory), or what memory does not hold (`keeping.choose`)."""


class Kept(IntEnum):
    """What of a block is kept for its backward pass; each keeps what those before it do. With the
    bytes per token of half precision, and what need not be computed again."""

    HOST = 0
    """x in host memory, and of the device's nothing. Where blocks do not run fused as INPUT."""
    INPUT = 1
    """x: 2 D"""
    ATTENTION = 2
    """The attention's output and log-sum-exp, 2 H E + 4 H: not the attention."""
    MIDDLE = 3
    """The residual stream after the attention, 2 D: not wo's product."""
    FFN_INPUTS = 4
    """q, k, v, 2 (H + 2 K) E: all but the feed-forward's first two products."""
    ALL = 5
    """Those too, 4 F."""


KEPT: dict[Checkpointing, Kept] = {
    "none": Kept.ALL,
    "ffn": Kept.FFN_INPUTS,
    "block": Kept.INPUT,
    "host": Kept.HOST,
    "auto": Kept.INPUT,
}
"""`auto` begins with little, until the memory that is left is known."""
