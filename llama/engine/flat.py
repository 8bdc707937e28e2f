"""The gradients of a step in one piece, handed to DeepSpeed's ZeRO 1 or 2 as it would have made it
of them: see `window.py` for why it is not asked to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from llama.data.types import Batch
from llama.engine.owners import summed_at_owner
from llama.engine.window import LossOf
from llama.fused.mirrored import Mirrored


def takes_flat(optimizer: object) -> bool:
    """Whether DeepSpeed's `optimizer` is one that `FlatWindow` knows how to hand gradients to."""
    return isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.cpu_offload


class FlatWindow:
    """No parameter of which DeepSpeed knows takes part: passes add to `sum`, or give gradients that
    are added to it, and at the end each rank is sent what it owns of the sum."""

    def __init__(self, engine: Any, trained: Iterable[nn.Parameter]) -> None:
        self._engine, self._optimizer = engine, engine.optimizer
        trained = list(trained)
        self.sum = Mirrored(trained)
        by_memory = {
            parameter.untyped_storage().data_ptr(): piece
            for parameter, piece in zip(trained, _pieces_of(self.sum), strict=True)
        }
        self._groups = [
            by_memory[flat.untyped_storage().data_ptr()]
            for flat in self._optimizer.bit16_groups_flat
        ]

    def run(
        self, batches: Sequence[Batch], loss_of: LossOf, weight: float, scale: float | None
    ) -> torch.Tensor:
        self.sum.zero_()
        losses = []
        for batch in batches:
            loss = loss_of(self._engine.module, batch)
            scaled = loss * weight if scale is None else loss * weight * scale
            self.sum.add_gradients(scaled)
            losses.append(loss.detach())
        self._hand_over()
        self._engine.set_gradient_accumulation_boundary(True)
        return torch.stack(losses).sum()

    def _hand_over(self) -> None:
        """As DeepSpeed's reduction leaves them: divided by the number of ranks, summed over them,
        and in the type that it adds up in."""
        optimizer = self._optimizer
        for index, whole in enumerate(self._groups):
            group = optimizer.real_dp_process_group[index]
            ranks, own = dist.get_world_size(group), whole
            if ranks > 1:
                whole.div_(ranks)
                pieces = list(whole.to(optimizer.communication_data_type).chunk(ranks))
                own = summed_at_owner(pieces, group)
            own = own.to(optimizer.gradient_accumulation_dtype)
            optimizer.averaged_gradients[index] = _InOnePiece(own)
            optimizer.all_grad_tensors[index] = None


class _InOnePiece(list[torch.Tensor]):
    """A list of one tensor, in which DeepSpeed sees that it need not lay it out flat."""

    def __init__(self, flat: torch.Tensor) -> None:
        super().__init__([flat])
        self.flat_partition = flat


def _pieces_of(mirrored: Mirrored) -> list[torch.Tensor]:
    """The piece that each part lies in."""
    by_memory = {piece.untyped_storage().data_ptr(): piece for piece in mirrored.pieces}
    return [by_memory[part.untyped_storage().data_ptr()] for part in mirrored.parts]
