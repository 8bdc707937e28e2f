"""Matrix products with frozen weights, taken in the arithmetic that the device is good at.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16 on x86, BF16 on Arm)."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def is_emulated(x: torch.Tensor) -> bool:
    """Whether products of `x` would be emulated: half precision on a CPU without it. Float32 is
    then several times faster, and no less exact."""
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return False
    return x.dtype == torch.float16 or not cpu_has_bf16()


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x @ y` in the type of `x`, in float32 arithmetic where the device has none for that type."""
    if is_emulated(x):
        return (x.float() @ y.float()).to(x.dtype)
    return x @ y


def linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W^T + b`, keeping nothing for the backward pass where W is frozen."""
    if weight_OI.requires_grad:
        return F.linear(x_TI, weight_OI, bias)
    y_TO = _FrozenLinear.apply(x_TI, weight_OI)
    return y_TO if bias is None else y_TO + bias  # type: ignore[operator]


class _FrozenLinear(torch.autograd.Function):
    """Only the input has a gradient, and that needs only the weight. The weight is kept on the
    context, not saved: a recomputed block then stops before its last product, whose output
    nothing in the backward pass reads, and ZeRO-3 finds the parameter gathered again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return product(x, weight.t())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad_output,) = grad_outputs
        return product(grad_output, ctx.weight), None
