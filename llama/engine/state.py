"""What training goes on from: the optimizer's view of the adapter, whole, by parameter name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by torch's names."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EngineState:
    """The same on every rank, however the run is spread: joined over tensor parallelism and ZeRO,
    in float32 on the CPU, each tensor shaped as in a run of one process."""

    masters: Tensors
    """The values that the optimizer steps; half-precision parameters are these, rounded."""
    exp_avg: Tensors
    exp_avg_sq: Tensors
    counters: dict[str, Any] = field(default_factory=dict)
    """JSON: steps taken and skipped, Adam's own count, learning rate, schedule, loss scaler."""
    fixed: Tensors = field(default_factory=dict)
    """Of tensors that the adapter keeps and does not train, the values that it computes with."""
