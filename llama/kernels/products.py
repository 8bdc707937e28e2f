"""Matrix products with frozen weights, in the type that the device multiplies fastest.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

FEW_TOKENS = 4
"""With no more tokens than these a product takes as long as it takes to read the weight. Writing a
wider copy of the weight first would then only be more memory to go through, so the product is taken
in the weight's own type."""


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16 on x86, BF16 on Arm)."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The type in which activations are computed that meet `weight`. It is the weight's own, but
    for half precision on a CPU that cannot multiply it: products would be emulated there, several
    times slower and no more exact than in float32. Activations are float32 then, while the weight
    stays in half precision and is widened for each product."""
    if weight.device.type != "cpu" or weight.dtype == torch.float32:
        return weight.dtype
    emulated = weight.dtype == torch.float16 or not cpu_has_bf16()
    return torch.float32 if emulated else weight.dtype


def linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x W^T + b`, `[T, O]` in the type of `x`; weight and bias may be of another type. Where the
    weight is frozen no tensor is kept for the backward pass: not `x`, which only the weight's
    gradient would need."""
    if bias is not None:
        bias = bias.to(x_TI.dtype)
    if weight_OI.requires_grad:
        return F.linear(x_TI, weight_OI.to(x_TI.dtype), bias)
    y_TO = _FrozenLinear.apply(x_TI, weight_OI)
    return y_TO if bias is None else y_TO + bias  # type: ignore[operator]


class _FrozenLinear(torch.autograd.Function):
    """`x W^T` where only x has a gradient: `g W`.

    The weight is an attribute of the context and not given to `save_for_backward`, for two
    reasons. When activation checkpointing computes a block again, torch stops as soon as every
    tensor that was saved has been restored; the block's last product saves nothing here, so it is
    not computed again, and nothing in the backward pass reads its output. And under ZeRO-3 the
    parameter is emptied after the forward pass and gathered before the backward one: the attribute
    is the parameter itself, with what it holds by then."""

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
