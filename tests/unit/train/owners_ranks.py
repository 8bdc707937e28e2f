"""The ranks of `test_owners`: `torchrun ... tests/unit/train/owners_ranks.py`."""

from __future__ import annotations

import torch
import torch.distributed as dist

from llama.train import engine as processes
from llama.train.engine.owners import summed_at_owner

SIZES = ((6, 6, 6), (1, 20, 3), (0, 5, 0))
"""Of each rank's piece: alike, as with one bucket; unlike, as with several; and none."""


def pieces(rank: int, sizes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Small whole numbers: their sum is exact in every type."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(-9, 10, (size,), generator=generator).to(dtype) for size in sizes]


def main() -> None:
    device = processes.start_processes()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    for sizes in (sizes[:ranks] for sizes in SIZES):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            own = [piece.to(device) for piece in pieces(rank, sizes, dtype)]
            got = summed_at_owner(own, dist.group.WORLD)
            of_all = [pieces(other, sizes, dtype)[rank] for other in range(ranks)]
            assert got.dtype == dtype
            assert torch.equal(got.cpu(), torch.stack(of_all).sum(0)), (sizes, dtype, rank)
    processes.stop_processes()


if __name__ == "__main__":
    main()
