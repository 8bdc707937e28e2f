"""The held-out loss of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from llama.assembly.use import summed_loss
from llama.data.batches import eval_batches
from llama.data.packing import PackedRow
from llama.engine import Engine
from llama.parallel.agreement import on_main


def held_out_loss(engine: Engine, rows: Sequence[PackedRow], micro_batch: int) -> float:
    """The mean loss over the supervised tokens of `rows`, without dropout; to the last digit the
    same on every rank, as what is kept follows from it. Every rank must call it."""
    mesh = engine.mesh
    batches = eval_batches(rows, micro_batch, mesh.data_parallel_rank, mesh.data_parallel_size)
    total, supervised = summed_loss(engine.model, batches, engine.device)
    both = torch.tensor([total, float(supervised)], dtype=torch.float64, device=engine.device)
    dist.all_reduce(both, group=mesh.data_parallel_group)
    return on_main(mesh, lambda: float(both[0] / both[1]))
