"""Dropout that draws the same mask however the model is sharded."""

from __future__ import annotations

import torch

from llama.parallel.mesh import TensorParallel


def dropout(x: torch.Tensor, p: float, tp: TensorParallel, sharded: bool) -> torch.Tensor:
    """Drop elements of `x[T, I or I/p]` with probability `p` and scale the rest by 1 / (1 - p).

    `sharded`: `x` is this rank's slice of the last dimension. Every rank then draws the mask of the
    full width from the generator that all ranks share, and takes its slice, so that the masks are
    those of one process and the generators stay in step. The default generator is used because
    activation checkpointing restores no other."""
    if p == 0.0:
        return x
    tokens, width = x.shape
    shards, rank = (tp.size, tp.rank) if sharded else (1, 0)
    if x.is_cuda and shards == 1:
        return torch.nn.functional.dropout(x, p)  # one fused kernel
    if x.is_cuda:  # the same kernel over as many elements draws the same mask
        mask = torch.nn.functional.dropout(x.new_ones(tokens, width * shards), p)
        return x * mask[:, rank * width : (rank + 1) * width]
    # Uniform numbers are drawn several times faster on CPU than Bernoulli ones.
    drawn = torch.rand((tokens, width * shards), device=x.device)
    keep = drawn[:, rank * width : (rank + 1) * width] >= p
    return x * (keep.to(x.dtype) * (1.0 / (1.0 - p)))
