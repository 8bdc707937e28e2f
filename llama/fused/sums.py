"""Sums over tensor-parallel ranks of what products give, part by part of the rows: while one part's
sum is under way the product of the next is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch

from llama.parallel.mesh import TensorParallel

ROWS, MOST = 8192, 4
"""Rows of a part at least: parts of 2,048 took longer than whole sums (docs/benchmarks/h100x2.md);
and parts at most, as the first product and the last sum have nothing beside them."""


def summed(
    tp: TensorParallel, rows: int, product: Callable[[slice], torch.Tensor]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """For each part of `rows`, in order, which rows it is of and the sum over the ranks of their
    `product`s. Every rank must take all of them."""
    each = -(-rows // max(1, min(MOST, rows // ROWS)))
    begun: deque[tuple[slice, torch.Tensor, Callable[[], object]]] = deque()
    for start in range(0, rows, each):
        part = slice(start, start + each)
        share = product(part)
        begun.append((part, share, tp.begin_all_reduce_(share)))
    while begun:
        part, share, wait = begun.popleft()
        wait()
        yield part, share
