"""Gradients that were added up past DeepSpeed, handed to it as it would have made them itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from llama.engine.gradients import InOnePiece, Part
from llama.engine.owners import summed_at_owner
from llama.engine.window import HandOver
from llama.fused.mirrored import Mirrored


def hand_over_to(engine: Any, trained: Iterable[nn.Parameter]) -> HandOver:
    """How the gradients of `trained` come to DeepSpeed's `engine`: in one piece to ZeRO 1 or 2 in
    the device's own memory, to all others one by one."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.cpu_offload:
        return partial(_in_one_piece, engine)
    return partial(_by_backward, engine, tuple(trained))


def _in_one_piece(engine: Any, gradients: Mirrored) -> None:
    """As ZeRO's reduction leaves them: divided by the number of ranks, summed over them at their
    owner, and in the type that it adds up in. They lie as its flat groups do, of which the
    parameters are parts."""
    optimizer = engine.optimizer
    for index, flat in enumerate(optimizer.bit16_groups_flat):
        own = whole = gradients.by_memory[flat.untyped_storage().data_ptr()]
        group = optimizer.real_dp_process_group[index]
        ranks = dist.get_world_size(group)
        if ranks > 1:
            whole.div_(ranks)
            pieces = list(whole.to(optimizer.communication_data_type).chunk(ranks))
            own = summed_at_owner(pieces, group)
        own = own.to(optimizer.gradient_accumulation_dtype)
        optimizer.averaged_gradients[index] = InOnePiece(own, _parts(optimizer, index, own))
        optimizer.all_grad_tensors[index] = None
    engine.set_gradient_accumulation_boundary(True)


def _parts(optimizer: Any, index: int, own: torch.Tensor) -> list[Part]:
    """What of `own`, this rank's share of a group's gradients, is which parameter's: the first may
    have begun on the rank before, the last may go on on the next. None where shards of a model do
    not make a difference between parameters."""
    if optimizer.model_parallel_world_size == 1:
        return []
    parts, before = [], optimizer.first_offset[index]
    for parameter in optimizer.params_in_partition[index]:
        size = min(parameter.numel() - before, own.numel())
        parts.append((own[:size], parameter))
        own, before = own[size:], 0
    return parts


def _by_backward(engine: Any, trained: tuple[nn.Parameter, ...], gradients: Mirrored) -> None:
    """As those of one backward pass. It looks for a backward pass behind the outcome of a call of
    its model alone."""
    model: Any = engine.module
    model.forward = lambda: _Held.apply(gradients.parts, *trained)
    try:
        loss = engine()
    finally:
        del model.forward
    engine.set_gradient_accumulation_boundary(True)
    # What it is given it scales: the gradients are scaled already, and take no part in that.
    engine.backward(loss, scale_wrt_gas=False)


class _Held(torch.autograd.Function):
    """Zero, with the gradients that it is given, whatever comes from above."""

    @staticmethod
    def forward(ctx: Any, held: list[torch.Tensor], *trained: torch.Tensor) -> torch.Tensor:
        ctx.held = held
        return torch.zeros((), device=trained[0].device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return None, *(gradient.clone() for gradient in ctx.held)
