"""RMSNorm and SwiGLU, keeping for the backward pass only what they were given.

Written by hand because autograd keeps every intermediate of the plain formula: of a block without
recomputation these would be most of the memory. Shapes: T tokens, D dim, F feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`, the mean in float32; Zhang & Sennrich, "Root Mean
    Square Layer Normalization", 2019."""
    weight_D = weight_D.to(x_TD.dtype)
    if weight_D.requires_grad or x_TD.is_cuda:  # torch has one fused kernel for it on CUDA
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D, eps)
    return _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    """With a frozen weight. With `r = 1/sqrt(mean(x^2) + eps)` and `g` the gradient times the
    weight, `dx = r g - x r^3 mean(g x)`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        grad = (grad_outputs[0] * weight).float()
        wide = x.float()
        dot = (grad * wide).mean(dim=-1, keepdim=True)
        return (grad * scale).addcmul_(wide, dot * scale**3, value=-1.0).to(x.dtype), None, None


def swiglu(gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`; Shazeer, "GLU Variants Improve Transformer", 2020."""
    return _SwiGLU.apply(gate_TF, up_TF)  # type: ignore[return-value]


class _SwiGLU(torch.autograd.Function):
    """`silu(g) = g s` with `s = sigmoid(g)`, and `silu'(g) = s (1 + g (1 - s))`."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, F.silu(gate).mul_(grad)
