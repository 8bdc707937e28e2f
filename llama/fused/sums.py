"""Sums over tensor-parallel ranks of what products give, part by part of the rows: while one part's
sum is under way the product of the next is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from llama.fused.kernels import add_shares_
from llama.kernels.compiled import rounds
from llama.parallel.mesh import TensorParallel
from llama.parallel.peers import PARTS

ROWS, MOST = 8192, 4
"""Rows of a part at least: parts of 2,048 took longer than whole sums (docs/benchmarks/h100x2.md);
and parts at most, as the first product and the last sum have nothing beside them."""
ROWS_BY_COPIES = 2048
"""Rows at least of the parts of a sum that is made by copies."""


Begun = Callable[[], torch.Tensor | None]
"""Waits for the exchange of a share, which then is the sum, or gives what is still to be added."""


def summed(
    tp: TensorParallel,
    out: torch.Tensor,
    product: Callable[[slice], torch.Tensor],
    x: torch.Tensor | None = None,
) -> torch.Tensor:
    """`out`, `[T, D]`: the sum over the ranks of their `product`s, given part by part of the rows,
    and of `x` if that is given. Every rank must call it."""
    begin, each = _way(tp, out)
    begun: deque[tuple[slice, torch.Tensor, Begun]] = deque()
    for start in rounds(range(0, len(out), each)):
        rows = slice(start, start + each)
        share = product(rows)
        begun.append((rows, share, begin(share)))
    while begun:
        rows, share, wait = begun.popleft()
        other = wait()
        if other is not None:
            add_shares_(out[rows], share, other, () if x is None else (x[rows],))
        elif x is not None:
            torch.add(x[rows], share, out=out[rows])
        else:
            out[rows] = share
    return out


def _way(tp: TensorParallel, out: torch.Tensor) -> tuple[Callable[[torch.Tensor], Begun], int]:
    """What begins an exchange, and rows of a part."""
    if (pair := tp.by_copies(out.device)) is not None:
        return pair.begin, _part(len(out), ROWS_BY_COPIES, PARTS)

    def begin(share: torch.Tensor) -> Begun:
        wait = tp.begin_all_reduce_(share)

        def whole() -> None:
            wait()

        return whole

    return begin, _part(len(out), ROWS, MOST)


def _part(rows: int, least: int, most: int) -> int:
    return -(-rows // max(1, min(most, rows // least)))
