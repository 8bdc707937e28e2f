"""Matrix products with frozen weights, taken in the arithmetic that the device is good at.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

FEW_TOKENS = 4
"""Up to here a product is bound by reading the weight, and widening it first would only cost."""


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16 on x86, BF16 on Arm)."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The type that activations have beside `weight`: its own, or float32 where products in its
    own would be emulated (half precision on a CPU without it: several times slower, and no more
    exact). The weight itself is then held in half and widened for each product."""
    if weight.device.type != "cpu" or weight.dtype == torch.float32:
        return weight.dtype
    emulated = weight.dtype == torch.float16 or not cpu_has_bf16()
    return torch.float32 if emulated else weight.dtype


def linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W^T + b` in the type of `x`, keeping nothing for the backward pass where W is frozen."""
    if bias is not None:
        bias = bias.to(x_TI.dtype)
    if weight_OI.requires_grad:
        return F.linear(x_TI, weight_OI.to(x_TI.dtype), bias)
    y_TO = _FrozenLinear.apply(x_TI, weight_OI)
    return y_TO if bias is None else y_TO + bias  # type: ignore[operator]


class _FrozenLinear(torch.autograd.Function):
    """Only the input has a gradient, and that needs only the weight. The weight is kept on the
    context, not saved: a recomputed block then stops before its last product, whose output
    nothing in the backward pass reads, and ZeRO-3 finds the parameter gathered again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        if x.dtype != weight.dtype and x.shape[0] <= FEW_TOKENS:
            return (x.to(weight.dtype) @ weight.t()).to(x.dtype)
        return x @ weight.to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad_output,) = grad_outputs
        return grad_output @ ctx.weight.to(grad_output.dtype), None
