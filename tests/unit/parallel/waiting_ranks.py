"""Two ranks of which one takes longer over its files than a collective waits for.

torchrun --nproc_per_node 2 -m tests.unit.parallel.waiting_ranks
"""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from llama.engine import start_processes
from llama.errors import TrainingError, UserError
from llama.launch.program import run_program
from llama.parallel import mesh as mesh_module
from llama.parallel.agreement import on_every, on_main
from llama.parallel.mesh import create_mesh

LONG = 20.0


def main() -> None:
    start_processes()
    with pytest.raises(UserError, match="to 1 data-parallel ranks on one host and to 2 on another"):
        create_mesh(1, base_sharers=1 + dist.get_rank())  # and no rank makes groups of its own
    mesh = create_mesh(1)
    mesh.wait()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=LONG / 2))

    def slow() -> str:
        time.sleep(LONG)
        return "done"

    assert on_main(mesh, slow) == "done"
    on_every(mesh, lambda: time.sleep(LONG * mesh.rank))  # the weights of a slow host

    def missing() -> None:
        if mesh.rank:
            slow()
            raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        on_every(mesh, missing)

    def broken() -> int:
        return 1 // (1 - mesh.rank)

    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        on_every(mesh, broken)
    mesh_module.PATIENCE = timedelta(seconds=LONG / 2)
    if mesh.rank:
        slow()
    with pytest.raises(TrainingError, match=f"rank {mesh.rank} waited for another in vain: "):
        mesh.wait()


if __name__ == "__main__":
    run_program(main)
