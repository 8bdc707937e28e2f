"""How the gradients of the micro-batches of one optimizer step come to DeepSpeed.

DeepSpeed follows each parameter through each backward pass and through the step: some 30
microseconds of the host for each, or 13 ms a micro-batch for the 448 tensors of adapters on all
layers of 32 blocks. A GPU that is given its passes as graphs would wait for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from llama.data.types import Batch

_FOREACH_ADD: Any = torch._foreach_add_  # type: ignore[attr-defined]
LossOf = Callable[[Callable[..., torch.Tensor], Batch], torch.Tensor]
"""The summed loss of a micro-batch, by a model."""


class Window(Protocol):
    """One way to go through the micro-batches of a step."""

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        """Forward and backward of all; DeepSpeed then has the gradients of the sum of the losses
        times `weight`, and times the loss `scale`, if there is one. Gives the sum of the losses."""
        ...


class ByDeepSpeed:
    """DeepSpeed goes through each."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            losses.append(loss := loss_of(self._engine, batch))
            self._engine.backward(loss * weight, scale_wrt_gas=False)
            losses[-1] = loss.detach()
            if not last:
                self._engine.step()
        return torch.stack(losses).sum()


class LastByDeepSpeed:
    """DeepSpeed goes through the last one. The gradients of the others are added up before, in the
    order and the type in which they would have been there, and go to it with the last one's."""

    def __init__(self, engine: Any, trained: Iterable[nn.Parameter]) -> None:
        self._engine = engine
        self._trained = list(trained)

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        losses, held = [], []
        for batch in batches[:-1]:
            losses.append(loss := loss_of(self._engine.module, batch))
            found = list(torch.autograd.grad(loss * (weight * (scale or 1.0)), self._trained))
            if held:
                _FOREACH_ADD(held, found)
            else:
                held = found
            losses[-1] = loss.detach()
        self._engine.set_gradient_accumulation_boundary(True)
        loss = loss_of(self._engine, batches[-1])
        losses.append(loss.detach())
        scaled = loss * weight
        if held:
            scaled = scaled + _Held.apply(held, *self._trained)
        self._engine.backward(scaled, scale_wrt_gas=False)
        return torch.stack(losses).sum()


class _Held(torch.autograd.Function):
    """Zero, with the gradients that it is given: they are scaled already."""

    @staticmethod
    def forward(ctx: Any, held: list[torch.Tensor], *trained: torch.Tensor) -> torch.Tensor:
        ctx.held = held
        return torch.zeros((), device=trained[0].device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return None, *ctx.held
