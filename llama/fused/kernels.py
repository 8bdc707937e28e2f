"""The element-wise work of a fused block: each function one kernel, once compiled.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim.
"""

from __future__ import annotations

import torch

from llama.kernels import formulas
from llama.kernels.compiled import kernel
from llama.parallel.dropout import dropped

swiglu = kernel(formulas.swiglu)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return formulas.rms_norm(x, weight, eps)[0]


def _norm_backward(
    residual: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`residual` and the gradient through the norm, summed in float32: the scale is found again
    from `x`, which is read anyway."""
    wide_grad, wide = grad.float() * weight.float(), x.float()
    through = formulas.rms_norm_backward(wide_grad, wide, formulas.inverse_rms(wide, eps))
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
def swiglu_backward_(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients to `gate` and `up`, taken in float32 and written in their place: with `grad`
    these are the largest tensors of a block, and nothing reads them again."""
    grad_gate, grad_up = formulas.swiglu_backward(grad.float(), gate.float(), up.float())
    return gate.copy_(grad_gate), up.copy_(grad_up)


@kernel
def rotate_both(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned at once."""
    return formulas.rotate(q, cos, signed_sin), formulas.rotate(k, cos, signed_sin)
