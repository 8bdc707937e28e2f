"""The feed-forward of a fused block in tiles of its tokens, so that none of its tensors of
`[T, F]`, which are the widest of a block, is ever whole.

For blocks that compute it again in the backward pass anyway, and for more tokens than a tile has.
Each tile goes forward and back as a block of so few tokens would; masks are those of the whole.

Shapes: T tokens, D dim, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Protocol

import torch

from llama.fused.factors import Adapted
from llama.kernels.compiled import rounds
from llama.model.kept import Kept

TOKENS = 8192
"""Of a tile: products of so many rows are as fast as any, and each tensor of an 8B is 0.2 GiB."""


class Tiled(Protocol):
    """What is asked of one call of a block."""

    adapted: Adapted

    def ffn_of_tile(self, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The block's output, of the residual stream after the attention and its norm."""
        ...

    def ffn_of_tile_backward(self, middle: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """The gradient to `middle`, of that of the output; leaves those of `adapted`."""
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
    sums: tuple[dict[str, torch.Tensor], ...] = {}, {}
    for tile, rows in _tiles(run, len(middle)):
        found[rows] = tile.ffn_of_tile_backward(middle[rows], grad[rows])
        for totals, parts in zip(sums, _gradients(tile), strict=True):
            for name, part in parts.items():
                if name not in totals:
                    totals[name] = torch.zeros_like(part, dtype=torch.float32)
                totals[name].add_(part)
    for totals, own in zip(sums, _gradients(run), strict=True):
        own.update((name, total.to(grad.dtype)) for name, total in totals.items())
    return found


def _gradients(run: Tiled) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return run.adapted.grads_a, run.adapted.grads_b


def _tiles(run: Tiled, tokens: int) -> Iterator[tuple[Tiled, slice]]:
    """For each tile the call as if the block had only its tokens, and which these are."""
    for start in rounds(range(0, tokens, TOKENS)):
        tile = copy(run)
        tile.adapted = run.adapted.from_row(start)
        yield tile, slice(start, start + TOKENS)
