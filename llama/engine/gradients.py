"""The norm of all gradients, and whether any overflowed, in a few kernels and one wait.

DeepSpeed's ZeRO-1 and 2 visit the gradients one by one: adapters on two layers of each of 32 blocks
are 128 tensors, and take over a thousand small kernels a step while the device has nothing else to
do. torch's `_foreach_norm` takes the whole list and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import is_model_parallel_parameter
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import nn

from llama.parallel.layers import shard_dim
from llama.parallel.mesh import TensorParallel

_FOREACH_NORM: Any = torch._foreach_norm  # type: ignore[attr-defined]


def check_all_at_once(optimizer: Any) -> bool:
    """Have DeepSpeed's optimizer of ZeRO-1 or 2 use `has_overflow` and the norm below in place of
    its own two methods. Where it takes the norm, which is not finite if one element of any rank's
    is not, it need not look for such elements before: it skips the step in either case. Any other
    optimizer, and one whose states are offloaded to the CPU, is left as it is: False."""
    changes = isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.cpu_offload
    if changes:
        hooks: Any = optimizer
        if hooks.compute_grad_norm:
            hooks.check_overflow = lambda partition_gradients=True: None
        hooks.has_overflow_partitioned_grads_serial = lambda: has_overflow(
            (gradient for group in hooks.averaged_gradients.values() for gradient in group or ()),
            hooks.device,
        )
        one_by_one, combined = hooks.get_grad_norm_direct, hooks.scaled_global_norm
        hooks.get_grad_norm_direct = _norm_of(optimizer, one_by_one)
        # What DeepSpeed's own step makes of it, to see whether it is finite and what to clip by, is
        # 20 kernels of one number each on a GPU, which is waited for twice.
        hooks.scaled_global_norm = lambda norm_type=2: combined(norm_type).cpu()
        point_anew = hooks._update_model_bit16_weights
        hooks._update_model_bit16_weights = lambda group: (
            None if _lie_in_place(hooks, group) else point_anew(group)
        )
    return changes


def _lie_in_place(optimizer: Any, group: int) -> bool:
    """Whether each parameter is the part of its group's flat memory that DeepSpeed would make it
    anew after every step, at 15 microseconds of the host for each."""
    flat = optimizer.bit16_groups_flat[group]
    start, size = flat.data_ptr(), flat.element_size()
    held = optimizer.round_robin_bit16_groups[group]
    offsets = optimizer.round_robin_bit16_offsets[group]
    return all(
        parameter.data_ptr() == start + size * offset
        for parameter, offset in zip(held, offsets, strict=True)
    )


def has_overflow(
    gradients: Iterable[torch.Tensor | None], device: torch.device | str
) -> torch.Tensor:
    """Whether any holds an infinity or NaN: boolean `[1]` on `device`, where they are. It looks at
    the largest magnitude of each tensor, which is infinite or NaN where one of its elements is. A
    rank may have none: it still has a part in what the ranks then make of it."""
    held = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
    if not held:
        return torch.zeros(1, dtype=torch.bool, device=device)
    largest = torch.stack([x.float() for x in _FOREACH_NORM(held, float("inf"))])
    return largest.isfinite().all().logical_not().reshape(1)


Part = tuple[torch.Tensor, nn.Parameter]
"""A gradient, or as much of it as is this rank's, and whose it is."""


class InOnePiece(list[torch.Tensor]):
    """A list of one tensor, in which DeepSpeed sees that it need not lay it out flat; and its
    `parts`, where it matters whose they are."""

    def __init__(self, flat: torch.Tensor, parts: list[Part]) -> None:
        super().__init__([flat])
        self.flat_partition = flat
        self.parts = parts


def _norm_of(optimizer: Any, one_by_one: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def norm(
        gradients: list[torch.Tensor], parameters: list[nn.Parameter], norm_type: float = 2
    ) -> torch.Tensor:
        """In the place of DeepSpeed's `get_grad_norm_direct`. As there, a gradient that every
        tensor-parallel rank has is counted on the first of them alone, and padding nowhere. The
        norms of the tensors that count here are then given to DeepSpeed's own function as if they
        were one gradient: their norm is the norm of all, and it alone knows over which ranks the
        squares are to be summed. Norms other than the Euclidean one are left to it wholly, and so
        is a rank on which nothing counts, since it must take part in that sum."""
        norms = _norms(optimizer, gradients, parameters) if float(norm_type) == 2.0 else []
        if not norms:
            return one_by_one(gradients, parameters, norm_type)
        return one_by_one([torch.stack(norms)], [_Counted()], norm_type)

    return norm


def _norms(
    optimizer: Any, gradients: list[torch.Tensor], parameters: list[nn.Parameter]
) -> list[torch.Tensor]:
    """Of those `gradients` of a group that count on this rank."""
    held = (g for g in gradients if not getattr(g, "_zero_padding", False))
    parts = gradients.parts if isinstance(gradients, InOnePiece) else []
    counted = [
        gradient
        for gradient, parameter in parts or zip(held, parameters, strict=False)
        if is_model_parallel_parameter(parameter) or optimizer.model_parallel_rank == 0
    ]
    return _FOREACH_NORM(counted, 2, dtype=get_norm_dtype()) if counted else []


def norm_on_device(optimizer: Any) -> torch.Tensor:
    """Of all gradients, the loss scale in it; infinite where one is not finite. It is what
    `scaled_global_norm` gives, to the last digit, but none of its numbers comes from the host,
    which would wait for the device to take it."""
    found = []
    for index, parameters in enumerate(optimizer.params_in_partition):
        norms = _norms(optimizer, optimizer.averaged_gradients[index], parameters)
        if norms:
            square = torch.linalg.vector_norm(torch.stack(norms)).pow(2.0).float()
        else:
            square = torch.zeros((), device=optimizer.device)
        for group in (optimizer.dp_process_group, optimizer.model_parallel_group):
            if group is not None and dist.get_world_size(group) > 1:
                dist.all_reduce(square, group=group)
        found.append(square.pow(0.5))
    norm = torch.linalg.vector_norm(torch.stack(found))
    return torch.where(norm.isfinite(), norm, float("inf"))


class _Counted:
    """Stands for the parameter of the gradient made of norms: marked as sharded, so that DeepSpeed
    counts it on every rank."""

    model_parallel = True


def norm_of(
    parameters: Iterable[nn.Parameter], tp: TensorParallel, device: torch.device
) -> torch.Tensor:
    """The norm of all gradients of a whole adapter, a scalar, where DeepSpeed takes none. They are
    already equal on data-parallel ranks; a sharded tensor's share is summed over its shards, a
    replicated one counts once."""
    squares = torch.zeros(2, dtype=torch.float64, device=device)  # sharded, replicated
    for parameter in parameters:
        if parameter.grad is not None:
            kind = int(shard_dim(parameter) is None)
            squares[kind] += parameter.grad.double().square().sum()
    squares[1] /= tp.size
    tp.all_reduce_(squares)
    return squares.sum().sqrt()
