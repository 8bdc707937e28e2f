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
def added(x: torch.Tensor, shares: Shares, out: torch.Tensor) -> torch.Tensor:
    """`x` and all `shares`, summed in float32, in the place of `out`."""
    return out.copy_(formulas.wide_sum((x, *shares)))


@kernel
def add_norm(
    x: torch.Tensor, shares: Shares, weight: torch.Tensor, eps: float, out: Shares
) -> Shares:
    """As `added`, the norm of that, and the norm's scale `[T, 1]`, in the places of `out`."""
    total = formulas.wide_sum((x, *shares)).to(x.dtype)
    found = total, *formulas.rms_norm(total, weight, eps)
    return tuple(place.copy_(value) for place, value in zip(out, found, strict=True))


@kernel
def norm_backward(
    residual: torch.Tensor,
    shares: Shares,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """`residual` and through the norm the gradient that `shares` add up to, summed in float32, in
    the place of `out`: the scale is found again from `x`, which is read anyway."""
    wide_grad, wide = formulas.wide_sum(shares) * weight.float(), x.float()
    through = formulas.rms_norm_backward(wide_grad, wide, formulas.inverse_rms(wide, eps))
    return out.copy_(residual.float() + through)


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
