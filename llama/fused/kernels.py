"""The element-wise work of a fused block: each function one kernel, once compiled.

What adapters add is in `paths.py`. Shapes: T tokens, D dim, H heads, E head_dim, R rank.
"""

from __future__ import annotations

import torch

from llama.fused.paths import Path, with_path
from llama.kernels import formulas
from llama.kernels.compiled import kernel

normed = kernel(formulas.rms_norm)


Shares = tuple[torch.Tensor, ...]
"""What is summed: over ranks, of each one what it adds; else one alone."""


@kernel
def added(x: torch.Tensor, shares: Shares) -> torch.Tensor:
    """`x` and all `shares`, summed in float32, in the type of `x`."""
    return formulas.wide_sum((x, *shares)).to(x.dtype)


@kernel
def add_norm(
    x: torch.Tensor, shares: Shares, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `added`, the norm of that, and the norm's scale `[T, 1]`."""
    total = formulas.wide_sum((x, *shares)).to(x.dtype)
    return total, *formulas.rms_norm(total, weight, eps)


@kernel
def norm_backward(
    residual: torch.Tensor, shares: Shares, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`residual` and through the norm the gradient that `shares` add up to, summed in float32: the
    scale is found again from `x`, which is read anyway."""
    wide_grad, wide = formulas.wide_sum(shares) * weight.float(), x.float()
    through = formulas.rms_norm_backward(wide_grad, wide, formulas.inverse_rms(wide, eps))
    return (residual.float() + through).to(x.dtype)


@kernel
def rotate_both(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    paths: tuple[Path, Path] = ((), ()),
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys, `[T, H, E]`, with what their adapters add, turned at once."""
    q, k = (
        formulas.rotate(with_path(x.flatten(1), path, scale).view(x.shape), cos, signed_sin)
        for x, path, scale in zip((q, k), paths, scales, strict=True)
    )
    return q, k
