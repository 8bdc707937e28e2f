"""Gradients of ZeRO 1 and 2 sent to the ranks that own them, and to no others.

DeepSpeed all-reduces them, after which each rank throws away what it does not own: 2(n-1)/n of
their bytes leave each rank, and with the all-gather of the updated parameters 3(n-1)/n. A
reduce-scatter does with (n-1)/n, so that a step moves no more than one all-reduce: the least there
is for n ranks that start with different gradients and end with the same parameters.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

Slice = tuple[frozenset[int], torch.Tensor, torch.Tensor | None]
"""The one rank that owns it, a flat slice of a gradient, and where that rank sums it up."""


def send_gradients_to_owners(optimizer: object) -> None:
    """Have DeepSpeed's `optimizer` reduce as said above, where it is that of ZeRO 1 or 2."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        replaced: Any = optimizer  # a method that `require_known` has seen to be there
        replaced.allreduce_and_scatter = functools.partial(_reduce_and_scatter, optimizer)


def _reduce_and_scatter(
    optimizer: Any,
    bucket: list[Slice],
    communication_data_type: torch.dtype,
    process_group: dist.ProcessGroup,
    **_: Any,
) -> None:
    """In place of the method of that name: same arguments, same outcome on the owner. The division
    by the number of ranks comes before it; how much is sent at a time is the bucket's size."""
    slices: list[list[tuple[torch.Tensor, torch.Tensor | None]]] = [
        [] for _ in range(dist.get_world_size(process_group))
    ]
    for (owner,), gradient, output in bucket:
        slices[owner].append((gradient, output))
    empty = bucket[0][1].new_empty(0)
    pieces = [
        torch.cat([empty, *(gradient for gradient, _ in of_owner)]).to(communication_data_type)
        for of_owner in slices
    ]
    own = slices[dist.get_rank(process_group)]
    total = summed_at_owner(pieces, process_group)
    for (gradient, output), part in zip(
        own, total.split([gradient.numel() for gradient, _ in own]), strict=True
    ):
        optimizer._add_to_grad_partition_buffer(output, part)
        gradient.copy_(part)


def summed_at_owner(pieces: list[torch.Tensor], group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over ranks of the flat `pieces[this rank]`. Piece i has one size on every rank, and
    another than piece j as it may be."""
    own = pieces[dist.get_rank(group)]
    if own.is_cuda:
        total = torch.empty_like(own)
        dist.reduce_scatter(total, pieces, group=group)  # NCCL's, which takes unlike sizes
        return total
    # gloo's reduce-scatter is an all-reduce inside: exchange the pieces, and sum in float32.
    received = own.new_empty(len(pieces) * own.numel())
    sizes = [piece.numel() for piece in pieces]
    dist.all_to_all_single(
        received, torch.cat(pieces), [own.numel()] * len(pieces), sizes, group=group
    )
    return received.view(len(pieces), -1).sum(0, dtype=torch.float32).to(own.dtype)
