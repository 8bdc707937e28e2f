"""The element-wise work of a fused block: each function one kernel, once compiled.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama.kernels.compiled import kernel
from llama.parallel.dropout import dropped


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `elementwise.rms_norm`."""
    wide = x.float()
    scale = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (wide * scale).to(x.dtype) * weight.to(x.dtype)


def _norm_backward(
    residual: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`residual` and the gradient through the norm, summed in float32: the scale is found again
    from `x`, which is read anyway."""
    wide_grad, wide = grad.float() * weight.float(), x.float()
    scale = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    dot = (wide_grad * wide).mean(dim=-1, keepdim=True)
    through = (wide_grad - wide * (dot * scale * scale)) * scale
    return (residual.float() + through).to(x.dtype)


norm = kernel(_norm)
norm_backward = kernel(_norm_backward)


@kernel
def norm_dropped(
    x: torch.Tensor, weight: torch.Tensor, eps: float, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    """The norm, and the norm under each seed's mask."""
    y = _norm(x, weight, eps)
    return y, *(dropped(y, seed, p) for seed in seeds)


@kernel
def only_norm_dropped(
    x: torch.Tensor, weight: torch.Tensor, eps: float, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    """The norm under each seed's mask."""
    y = _norm(x, weight, eps)
    return tuple(dropped(y, seed, p) for seed in seeds)


@kernel
def dropped_each(
    x: torch.Tensor, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    """`x` under each seed's mask."""
    return tuple(dropped(x, seed, p) for seed in seeds)


@kernel
def add_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + update`, and its norm."""
    total = x + update
    return total, _norm(total, weight, eps)


@kernel
def norm_backward_dropped(
    residual: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    paths: tuple[torch.Tensor, ...],
    seeds: tuple[torch.Tensor, ...],
    p: float,
) -> torch.Tensor:
    """`norm_backward` of `grad` and the gradients of adapters' inputs `paths`, each through its
    mask."""
    total = grad.float()
    for path, seed in zip(paths, seeds, strict=True):
        total = total + dropped(path.float(), seed, p)
    return _norm_backward(residual, total, x, weight, eps)


@kernel
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


@kernel
def swiglu_backward_(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients to `gate` and `up`, in their place: with `grad` these are the largest tensors
    of a block, and nothing reads them again."""
    wide, slope = gate.float(), torch.sigmoid(gate.float())
    silu = wide * slope
    grad_gate = grad.float() * up.float() * (slope + silu * (1.0 - slope))
    grad_up = grad.float() * silu
    return gate.copy_(grad_gate), up.copy_(grad_up)


@kernel
def rotate_both(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `elementwise.rotate`, of queries and keys at once."""
    return _rotate(q, cos, signed_sin), _rotate(k, cos, signed_sin)


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), signed_sin)
