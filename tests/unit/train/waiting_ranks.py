"""Two ranks of which one takes longer over its files than a collective waits for.

torchrun --nproc_per_node 2 -m tests.unit.train.waiting_ranks
"""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from llama.errors import UserError
from llama.parallel.mesh import create_mesh
from llama.program import run_program
from llama.train import engine as processes
from llama.train.agreement import on_main
from llama.train.engine import processes as patched

LONG = 4.0


def main() -> None:
    patched.MEETING = timedelta(seconds=LONG / 2)
    processes.start_processes()
    mesh = create_mesh(1)

    def slow() -> str:
        time.sleep(LONG)
        return "done"

    assert on_main(mesh, slow) == "done"
    with mesh.agreement():  # the weights of a host whose disk is slow
        time.sleep(LONG * mesh.rank)
    with pytest.raises(UserError, match="no such file"), mesh.agreement():
        if mesh.rank:
            slow()
            raise UserError("no such file")
    if mesh.rank:
        slow()
    with pytest.raises(RuntimeError) as late:  # a plain collective does give up
        dist.all_reduce(torch.zeros(1))
    print(json.dumps(str(late.value)))


if __name__ == "__main__":
    run_program(main)
