"""How the gradients of the micro-batches of one optimizer step come to DeepSpeed.

DeepSpeed follows each parameter through each backward pass and through the step: some 30
microseconds of the host for each, or 13 ms a micro-batch for the 448 tensors of adapters on all
layers of 32 blocks. A GPU that is given its passes as graphs would wait for that. And a backward
pass that fails halfway leaves its account of the gradients half written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from llama.data.types import Batch
from llama.engine.again import KeepLess, Room, begun_again
from llama.fused.mirrored import Mirrored

LossOf = Callable[[Callable[..., torch.Tensor], Batch], torch.Tensor]
"""The summed loss of a micro-batch, by a model."""
HandOver = Callable[[Mirrored], None]
"""Gives DeepSpeed the gradients of a whole step, scaled as it wants them, at its boundary."""


class Window(Protocol):
    """One way to go through the micro-batches of a step."""

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        """Forward and backward of all; DeepSpeed then has the gradients of the sum of the losses
        times `weight`, and times the loss `scale`, if there is one. Gives the sum of the losses."""
        ...


class ByDeepSpeed:
    """DeepSpeed goes through each micro-batch."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            loss = loss_of(self._engine, batch)
            losses.append(loss.detach())
            self._engine.backward(loss * weight, scale_wrt_gas=False)
            if not last:
                self._engine.step()
        return torch.stack(losses).sum()


class Apart:
    """DeepSpeed goes through none. Gradients are added up in `sum`, in the order and the type in
    which it would have done so (but ZeRO-2 sums each micro-batch over the ranks first), and handed
    over at the end; where memory runs out before that, or `room` is then wanting, the passes are
    taken again if `keep_less` finds something to do without."""

    def __init__(
        self,
        model: Callable[..., torch.Tensor],
        trained: Iterable[nn.Parameter],
        hand_over: HandOver,
        keep_less: KeepLess | None,
        room: Room | None,
    ) -> None:
        self._model, self._hand_over, self._keep_less = model, hand_over, keep_less
        self._room = room
        self.sum = Mirrored(list(trained))

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        def attempt() -> torch.Tensor:
            self.sum.zero_()
            losses = []
            for batch in batches:
                loss = loss_of(self._model, batch)
                losses.append(loss.detach())
                self.sum.add_gradients(loss * (weight * (scale or 1.0)))
            if self._room is not None:
                self._room.check()
            return torch.stack(losses).sum()

        keep_less = self._keep_less
        total = attempt() if keep_less is None else begun_again(attempt, keep_less)
        self._hand_over(self.sum)
        return total
