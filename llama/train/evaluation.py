"""The held-out loss of a run."""

from __future__ import annotations

from collections.abc import Sequence

from llama.assembly.use import loss_of_share, mean_loss
from llama.data.packing import PackedRow
from llama.engine import Engine
from llama.parallel.agreement import on_main


def held_out_loss(engine: Engine, rows: Sequence[PackedRow], micro_batch: int) -> float:
    """The mean loss over the supervised tokens of `rows`, without dropout; to the last digit the
    same on every rank, as what is kept follows from it. Every rank must call it."""
    mesh, device = engine.mesh, engine.device
    share = loss_of_share(engine.model, rows, micro_batch, mesh, device)
    mean, _ = mean_loss(share, mesh, device)
    return on_main(mesh, lambda: mean)
