"""What one optimizer step is, and what it did."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Step:
    """What one optimizer step did, summed over all ranks where that has a meaning."""

    loss_sum: float
    supervised: int
    tokens: int
    learning_rate: float
    """That the update was made with, or would have been in a skipped step."""
    learning_rate_b: float | None
    """The same of B, where `--lora.b_lr_ratio` gives it another; None where all have one."""
    grad_norm: float | None
    loss_scale: float | None
    applied: bool
    """False where NaN or infinity made every rank skip the update."""
    skip_reason: str | None = None
    """Of a skipped step, which tensor went non-finite first."""

    @property
    def loss(self) -> float:
        """Mean over the supervised tokens of the step."""
        return self.loss_sum / max(self.supervised, 1)


def dropout_seed(seed: int, step: int, stream: int) -> int:
    """The dropout seed of micro-batch `stream` (counted over all ranks) of a step: a function of
    what is computed, not of where, so that any split draws the same masks."""
    digest = hashlib.sha256(f"dropout:{seed}:{step}:{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout on `device` draws from. torch's own `manual_seed` seeds
    those of every kind of device that it knows, and for each that is not there takes down where it
    was called from: half a millisecond of a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
