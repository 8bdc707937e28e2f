"""What tensor-parallel ranks share by rows of the adapters on an input that each of them has whole.

Of such a layer's outputs each rank has some, so that it finds a share of the gradient to an
adapter's `A x`, of a few numbers a token. What A makes of the sum, its own gradient and what is
added to the input's, is as wide as the input. So the ranks exchange the former, and each does the
latter for some rows: the gradients to A and to the input are summed over the ranks anyway.

Shapes: T tokens, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llama.fused import kernels
from llama.fused.paths import Path
from llama.parallel.mesh import TensorParallel

FEWEST = 2048
"""Tokens: of fewer all rows take no longer than the exchange does."""


def of_own_rows(
    tp: TensorParallel, parts: Path, possible: bool
) -> tuple[slice, Callable[[], Path]]:
    """The rows that this rank takes of an input, and what gives the sum over the ranks of `parts`,
    `[T, R]` each, in these rows: on its way between ranks until it is called, as `Sums.begin` says.
    All rows, and `parts` as they are, where it is not possible or not worth it."""
    tokens = len(parts[0]) if parts else 0
    shared = possible and tp.size > 1 and tokens >= FEWEST
    if not (shared and tp.sums.has_room_beside(parts)):
        return slice(None), lambda: parts
    end = tp.sums.begin(parts)
    rows = slice(tokens * tp.rank // tp.size, tokens * (tp.rank + 1) // tp.size)
    return rows, lambda: tuple(part[rows] for part in total(end(), parts, tokens))


def total(
    shares: Sequence[torch.Tensor], like: Sequence[torch.Tensor], rows: int = 1
) -> list[torch.Tensor]:
    """The sum of `shares`, as `Sums.begin` has them of tensors `like` these. They are taken to be
    so many `rows`, over which the work is spread."""
    first, *others = (share.view(rows, -1) for share in shares)
    summed = kernels.added(first, tuple(others), torch.empty_like(first)) if others else first
    pieces = summed.view(-1).split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]
