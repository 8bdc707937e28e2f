"""The feed-forward of a fused block in tiles of its tokens, so that none of its tensors of
`[T, F]`, which are the widest of a block, is ever whole.

For blocks that compute it again in the backward pass anyway, and for more tokens than a tile has.
Each tile goes forward and back as a block of so few tokens would; masks are those of the whole.

Shapes: T tokens, D dim, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import torch

from llama.kernels.compiled import rounds
from llama.model.kept import Kept
from llama.parallel.dropout import from_row

TOKENS = 8192
"""Of a tile: products of so many rows are as fast as any, and each tensor of an 8B is 0.2 GiB."""


class Tiled(Protocol):
    """What is asked of one call of a block."""

    factors: dict[str, Any]
    grads: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def ffn_of_tile(self, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The block's output, of the residual stream after the attention and its norm."""
        ...

    def ffn_of_tile_backward(self, middle: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """The gradient to `middle`, of that of the output; leaves `grads`."""
        ...


def in_tiles(kept: Kept, tokens: int) -> bool:
    """Whether a block that keeps `kept` has its feed-forward in tiles."""
    return kept <= Kept.INPUT and tokens > TOKENS


def forward(run: Tiled, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The block's output, written in the place of `middle`."""
    for tile, rows in _tiles(run, len(y)):
        middle[rows] = tile.ffn_of_tile(middle[rows], y[rows])
    return middle


def backward(run: Tiled, middle: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient to `middle`, of that of the block's output. The gradients of the adapters are
    summed over the tiles in float32."""
    found = torch.empty_like(middle)
    sums: dict[str, list[torch.Tensor]] = {}
    for tile, rows in _tiles(run, len(middle)):
        found[rows] = tile.ffn_of_tile_backward(middle[rows], grad[rows])
        for name, parts in tile.grads.items():
            if name not in sums:
                sums[name] = [torch.zeros_like(part, dtype=torch.float32) for part in parts]
            for total, part in zip(sums[name], parts, strict=True):
                total.add_(part)
    for name, (of_a, of_b) in sums.items():
        run.grads[name] = of_a.to(grad.dtype), of_b.to(grad.dtype)
    return found


def _tiles(run: Tiled, tokens: int) -> Iterator[tuple[Tiled, slice]]:
    """For each tile the call as if the block had only its tokens, and which these are."""
    for start in rounds(range(0, tokens, TOKENS)):
        tile = copy(run)
        tile.grads = {}
        tile.factors = {
            name: factors if factors.seed is None else _moved(factors, start)
            for name, factors in run.factors.items()
        }
        yield tile, slice(start, start + TOKENS)


def _moved(factors: Any, row: int) -> Any:
    return replace(factors, seed=from_row(factors.seed, row))
