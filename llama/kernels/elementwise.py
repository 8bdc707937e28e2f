"""RMSNorm, SwiGLU and the rotary turn, keeping for the backward pass only what they were given.

Their gradients are written by hand because autograd keeps every intermediate of the plain formula:
of a block without recomputation these would be most of the memory. Where nothing is kept the
formulas are called as they are: for one token, what autograd does around them takes longer.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama.kernels import formulas
from llama.kernels.compiled import compiled, kernel
from llama.kernels.paths import on_cuda, run

_rms_norm = kernel(formulas.rms_norm)
_swiglu = kernel(formulas.swiglu)
_swiglu_backward = kernel(formulas.swiglu_backward)
_rotate = kernel(formulas.rotate)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`formulas.rms_norm`, `[T, D]` in the type of `x`; the weight has a gradient where it asks
    for one."""
    weight_D = weight_D.to(x_TD.dtype)
    if weight_D.requires_grad or (on_cuda(x_TD) and not compiled()):
        # one kernel of torch's on CUDA
        return run(F.rms_norm, x_TD, (x_TD.shape[-1],), weight_D, eps)
    if not torch.is_grad_enabled() and not compiled():
        return F.rms_norm(x_TD.float(), (x_TD.shape[-1],), None, eps).to(x_TD.dtype) * weight_D
    return _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[return-value]


@kernel
def _rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    return formulas.rms_norm_backward((grad * weight).float(), x.float(), scale).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """With a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _rms_norm_backward(grad_outputs[0], *ctx.saved_tensors), None, None


def swiglu(gate_TF: torch.Tensor, up_TF: torch.Tensor) -> torch.Tensor:
    """`formulas.swiglu`, `[T, F]`."""
    if not torch.is_grad_enabled():
        return _swiglu(gate_TF, up_TF)
    return _SwiGLU.apply(gate_TF, up_TF)  # type: ignore[return-value]


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
    """`formulas.rotate`, `[T, H, E]`; the angles have no gradient."""
    if not torch.is_grad_enabled():
        return _rotate(x_THE, cos_T1E, signed_sin_T1E)
    return _Rotate.apply(x_THE, cos_T1E, signed_sin_T1E)  # type: ignore[return-value]


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
