"""RMSNorm, SwiGLU and the rotary turn, keeping for the backward pass only what they were given.

Written by hand because autograd keeps every intermediate of the plain formula: of a block without
recomputation these would be most of the memory. Each forward and backward is one plain function of
tensors, so that `kernel` can make each into one kernel.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama.kernels.compiled import compiled, kernel


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`, the mean in float32; Zhang & Sennrich, "Root Mean
    Square Layer Normalization", 2019."""
    weight_D = weight_D.to(x_TD.dtype)
    if weight_D.requires_grad or (x_TD.is_cuda and not compiled()):
        return F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D, eps)  # one kernel of torch's on CUDA
    return _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[return-value]


@kernel
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    wide = x.float()
    scale = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (wide * scale).to(x.dtype) * weight, scale


@kernel
def _rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    wide_grad, wide = (grad * weight).float(), x.float()
    dot = (wide_grad * wide).mean(dim=-1, keepdim=True)
    return (wide_grad * scale).addcmul(wide, dot * scale**3, value=-1.0).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """With a frozen weight. With `r = 1/sqrt(mean(x^2) + eps)` and `g` the gradient times the
    weight, `dx = r g - x r^3 mean(g x)`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _rms_norm_backward(grad_outputs[0], *ctx.saved_tensors), None, None


def swiglu(gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`; Shazeer, "GLU Variants Improve Transformer", 2020."""
    return _SwiGLU.apply(gate_TF, up_TF)  # type: ignore[return-value]


@kernel
def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


@kernel
def _swiglu_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate) * grad


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _swiglu_backward(grad_outputs[0], *ctx.saved_tensors)


def rotate(
    x_THE: torch.Tensor, cos_T1E: torch.Tensor, signed_sin_T1E: torch.Tensor
) -> torch.Tensor:
    """`x cos + swap(x) signed_sin`, where `swap` exchanges the halves of E and the sine is negated
    in its first half: (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin)."""
    return _Rotate.apply(x_THE, cos_T1E, signed_sin_T1E)  # type: ignore[return-value]


@kernel
def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), signed_sin)


class _Rotate(torch.autograd.Function):
    """The gradient is turned back by the same angle."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _rotate(x, cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        cos, signed_sin = ctx.saved_tensors
        return _rotate(grad_outputs[0], cos, -signed_sin), None, None
