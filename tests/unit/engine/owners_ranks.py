"""The ranks of `test_owners`: `torchrun ... tests/unit/engine/owners_ranks.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from llama.adapters.attach import attach, initialise
from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.data.types import Example
from llama.engine import Engine, start_processes
from llama.engine.owners import summed_at_owner
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json

SIZES = ((6, 6, 6), (1, 20, 3), (0, 5, 0))
"""Of each rank's piece: alike, as with one bucket; unlike, as with several; and none."""


def pieces(rank: int, sizes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Small whole numbers: their sum is exact in every type."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(-9, 10, (size,), generator=generator).to(dtype) for size in sizes]


def check_that_no_gradient_goes_to_all(stage: int, device: torch.device) -> None:
    """In a step of this ZeRO stage nothing of the adapter's size is all-reduced: DeepSpeed still
    calls what `owners` replaces. At stage 0, which all-reduces, the count is seen to work."""
    ranks = dist.get_world_size()
    model = build_model(ModelSource("tiny", RandomReader(TINY), None), torch.float32, device)
    attach(model, LoRAOptions(8, 16.0, 0.0, ("wq", "wv")))
    initialise(model, 0, device)
    resolved = resolved_json(settings(stage, 1), ranks, TINY)
    engine = Engine(model, resolved, create_mesh(1), device, seed=0)
    largest = 0
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return all_reduce(tensor, *args, **options)

    ids = list(range(5, 25))
    batch = make_batch([[Example(ids, ids, row=1)]], stream=dist.get_rank())
    dist.all_reduce = counted
    try:
        assert engine.step([batch]).applied
    finally:
        dist.all_reduce = all_reduce
    assert (largest > 16) == (stage == 0), (stage, largest)
    engine.close()


def main() -> None:
    device = start_processes()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    for sizes in (sizes[:ranks] for sizes in SIZES):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            own = [piece.to(device) for piece in pieces(rank, sizes, dtype)]
            got = summed_at_owner(own, dist.group.WORLD)
            of_all = [pieces(other, sizes, dtype)[rank] for other in range(ranks)]
            assert got.dtype == dtype
            assert torch.equal(got.cpu(), torch.stack(of_all).sum(0)), (sizes, dtype, rank)
    for stage in (0, 1, 2):
        check_that_no_gradient_goes_to_all(stage, device)
    stop_processes()


if __name__ == "__main__":
    run_program(main)
