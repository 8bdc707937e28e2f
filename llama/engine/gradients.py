"""Norm and overflow of all gradients at once.

DeepSpeed's ZeRO-1 and 2 visit each gradient by itself: of a model of 32 layers 128 tensors and over
a thousand kernels a step, while the device has nothing else to do. The same numbers come from
torch's `_foreach_norm` over the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from deepspeed.runtime.utils import is_model_parallel_parameter
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import nn

_FOREACH_NORM: Any = torch._foreach_norm  # type: ignore[attr-defined]


def check_all_at_once(optimizer: Any) -> None:
    """Give DeepSpeed's ZeRO-1 or 2 optimizer these two; any other is left as it is."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.cpu_offload:
        hooks: Any = optimizer
        hooks.has_overflow_partitioned_grads_serial = lambda: has_overflow(
            gradient for group in hooks.averaged_gradients.values() for gradient in group or ()
        )
        one_by_one = hooks.get_grad_norm_direct
        hooks.get_grad_norm_direct = _norm_of(optimizer, one_by_one)


def has_overflow(gradients: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Whether any has an infinity or NaN, `[1]`, on their device: the largest magnitude of a
    tensor shows either."""
    held = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
    largest = torch.stack([x.float() for x in _FOREACH_NORM(held, float("inf"))])
    return largest.isfinite().all().logical_not().reshape(1)


def _norm_of(optimizer: Any, one_by_one: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def norm(
        gradients: list[torch.Tensor], parameters: list[nn.Parameter], norm_type: float = 2
    ) -> torch.Tensor:
        """The norm over this rank's gradients, a replicated one counted on the first rank alone;
        summed over ranks by DeepSpeed's own function, which sees it as one gradient."""
        counted = [
            gradient
            for gradient, parameter in zip(
                (g for g in gradients if not getattr(g, "_zero_padding", False)),
                parameters,
                strict=False,
            )
            if is_model_parallel_parameter(parameter) or optimizer.model_parallel_rank == 0
        ]
        if not counted or float(norm_type) != 2.0:
            return one_by_one(gradients, parameters, norm_type)
        norms = _FOREACH_NORM(counted, 2, dtype=get_norm_dtype())
        return one_by_one([torch.stack(norms)], [_Counted()], norm_type)

    return norm


class _Counted:
    """A parameter that every rank counts."""

    model_parallel = True
