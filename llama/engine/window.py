"""The micro-batches of one optimizer step, of which DeepSpeed is given the last.

DeepSpeed follows each parameter through each backward pass: some 30 microseconds of the host for
each, or 13 ms a micro-batch for the 448 tensors of adapters on all layers of 32 blocks. A GPU that
is given its passes as graphs would wait for that. So the gradients of all micro-batches but the
last are added up here, in the order and the type in which they would have been there, and go to it
with the last one's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_FOREACH_ADD: Any = torch._foreach_add_  # type: ignore[attr-defined]


class Window:
    """The gradients of one step, as they are added up."""

    def __init__(self, trained: Iterable[nn.Parameter]) -> None:
        self._trained = list(trained)
        self._held: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        """Go back through `loss`, that of a micro-batch, scaled."""
        found = list(torch.autograd.grad(loss, self._trained))
        if self._held:
            _FOREACH_ADD(self._held, found)
        else:
            self._held = found

    def with_held(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, with a gradient to which what was added belongs."""
        if not self._held:
            return loss
        return loss + _Held.apply(self._held, *self._trained)


class _Held(torch.autograd.Function):
    """Zero, with the gradients that it is given: they are scaled already."""

    @staticmethod
    def forward(ctx: Any, held: list[torch.Tensor], *trained: torch.Tensor) -> torch.Tensor:
        ctx.held = held
        return torch.zeros((), device=trained[0].device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return None, *ctx.held
