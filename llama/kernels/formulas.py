"""The element-wise formulas of a block, each written once, as plain functions of tensors.

`elementwise` makes autograd functions of them, and `llama/fused/kernels.py` the larger kernels of
the fused block. None is itself a `kernel`, so that several may become part of one.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def wide_sum(shares: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Of all, in float32 and in their order."""
    return sum((share.float() for share in shares[1:]), start=shares[0].float())


def inverse_rms(wide_TD: torch.Tensor, eps: float) -> torch.Tensor:
    """`1 / sqrt(mean(x^2) + eps)` of each token, float32 `[T, 1]`."""
    return (wide_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


def rms_norm(
    x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x r weight` in the type of `x`, and `r = inverse_rms(x)`: Zhang & Sennrich, "Root Mean
    Square Layer Normalization", 2019. The mean and `x r` are taken in float32."""
    wide_TD = x_TD.float()
    scale_T1 = inverse_rms(wide_TD, eps)
    return (wide_TD * scale_T1).to(x_TD.dtype) * weight_D.to(x_TD.dtype), scale_T1


def rms_norm_backward(
    wide_grad_TD: torch.Tensor, wide_TD: torch.Tensor, scale_T1: torch.Tensor
) -> torch.Tensor:
    """The gradient to `x`, all in float32: with `r` as in `rms_norm` and `g` the gradient of the
    output times the weight, `r g - x r^3 mean(g x)`."""
    dot_T1 = (wide_grad_TD * wide_TD).mean(dim=-1, keepdim=True)
    return (wide_grad_TD * scale_T1).addcmul(wide_TD, dot_T1 * scale_T1**3, value=-1.0)


def swiglu(gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`; Shazeer, "GLU Variants Improve Transformer", 2020."""
    return F.silu(gate_TF) * up_TF


def swiglu_backward(
    grad_TF: torch.Tensor, gate_TF: torch.Tensor, up_TF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients to `gate` and `up`, in the arithmetic of what is given."""
    return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), F.silu(gate_TF) * grad_TF


def rotate(
    x_THE: torch.Tensor, cos_T1E: torch.Tensor, signed_sin_T1E: torch.Tensor
) -> torch.Tensor:
    """`x cos + swap(x) signed_sin`, where `swap` exchanges the halves of E and the sine is negated
    in its first half: (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin)."""
    first, second = x_THE.chunk(2, dim=-1)
    return torch.addcmul(x_THE * cos_T1E, torch.cat((second, first), dim=-1), signed_sin_T1E)
