"""Dropout that draws the same mask however the model is sharded."""

from __future__ import annotations

from typing import Any

import torch

from llama.kernels.compiled import compiled, kernel
from llama.parallel.mesh import TensorParallel


def dropout(x: torch.Tensor, p: float, tp: TensorParallel, sharded: bool) -> torch.Tensor:
    """Drop elements of `x[T, I or I/p]` with probability `p` and scale the rest by 1 / (1 - p).

    `sharded`: `x` is this rank's slice of the last dimension. Every rank then draws the mask of the
    full width from the generator that all ranks share, and takes its slice, so that the masks are
    those of one process and the generators stay in step. The default generator is used because
    activation checkpointing restores no other. Compiled, masks are `keep_mask`'s."""
    if p == 0.0:
        return x
    tokens, width = x.shape
    shards, rank = (tp.size, tp.rank) if sharded else (1, 0)
    if x.is_cuda and compiled():
        place = (width * shards, width * rank)
        return _Dropped.apply(x, draw_seed(x.device), p, place)  # type: ignore[return-value]
    if x.is_cuda and shards == 1:
        return torch.nn.functional.dropout(x, p)  # one fused kernel
    if x.is_cuda:  # the same kernel over as many elements draws the same mask
        mask = torch.nn.functional.dropout(x.new_ones(tokens, width * shards), p)
        return x * mask[:, rank * width : (rank + 1) * width]
    # Uniform numbers are drawn several times faster on CPU than Bernoulli ones.
    drawn = torch.rand((tokens, width * shards), device=x.device)
    keep = drawn[:, rank * width : (rank + 1) * width] >= p
    return x * (keep.to(x.dtype) * (1.0 / (1.0 - p)))


def draw_seed(device: torch.device) -> torch.Tensor:
    """A mask's seed, int64 `[1]` on `device`, from the CPU's default generator: no waiting for the
    device, and activation checkpointing restores it."""
    return torch.full((1,), int(torch.randint(2**62, ())), dtype=torch.int64, device=device)


def keep_mask(
    seed: torch.Tensor, shape: torch.Size, p: float, full_width: int, start: int
) -> torch.Tensor:
    """Which elements of `shape = [T, I]` stay, where they are the columns from `start` on of
    `full_width`: a function of the seed and of each element's place in the whole, so that a mask
    is never stored and a shard computes its own part.

    The place is hashed with Wellons' `lowbias32`, the seed's halves put in before it. They come
    first: products of places by constants alone, inductor would fold beyond 32 bits."""
    device = seed.device
    rows = torch.arange(shape[0], dtype=torch.int32, device=device).unsqueeze(1)
    columns = torch.arange(shape[1], dtype=torch.int32, device=device)
    low, high = seed.to(torch.int32), (seed >> 32).to(torch.int32)
    n = ((rows * full_width + (columns + start)) ^ low) * -1640531527 + high
    n = (n ^ ((n >> 16) & 0xFFFF)) * 0x7FEB352D
    n = (n ^ ((n >> 15) & 0x1FFFF)) * -2073254261
    n = n ^ ((n >> 16) & 0xFFFF)
    return (n & 0x7FFFFFFF) >= int(p * 2**31)


def dropped(
    x: torch.Tensor, seed: torch.Tensor, p: float, place: tuple[int, int] | None = None
) -> torch.Tensor:
    """`x[T, I]` without what the seed's mask drops, the rest scaled by 1 / (1 - p); to be part of a
    `kernel`. `place`: the mask's full width and the column of it at which `x` starts; by default
    `x` has the full width."""
    full_width, start = place or (x.shape[1], 0)
    keep = keep_mask(seed, x.shape, p, full_width, start)
    return torch.where(keep, x * (1.0 / (1.0 - p)), 0.0)


_dropped = kernel(dropped)


class _Dropped(torch.autograd.Function):
    """Linear in x, so that the gradient goes through the same mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seed: torch.Tensor, p: float, place: Any) -> Any:
        ctx.mask = seed, p, place
        return _dropped(x, *ctx.mask)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _dropped(grad_outputs[0], *ctx.mask), None, None, None
