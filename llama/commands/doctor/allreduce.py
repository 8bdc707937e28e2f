"""One host's ranks in an all-reduce over every host:
`python -m llama.commands.doctor.allreduce REQUEST`.

Each rank says how far it came (`joined` the rendezvous, `connected` to the others, `reduced`):
where it stopped tells a closed port from a wrong interface.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from datetime import timedelta
from typing import Any

from llama.commands.doctor.probe import say
from llama.launch.program import run_program

_REPEATS = 5
_FLOAT = 4


def run_rank(request: dict[str, Any], local_rank: int) -> int:
    """Join, connect, reduce and time it; what goes wrong is said. Gives the process's status."""
    signal.alarm(request["limit"])
    rank = request["first_rank"] + local_rank
    try:
        _run(request, rank, local_rank)
    except Exception as error:
        say({"rank": rank, "error": str(error).partition("\n")[0] or type(error).__name__})
        return 1
    return 0


def _run(request: dict[str, Any], rank: int, local_rank: int) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of it would be the last word
    import torch
    import torch.distributed as dist

    world, limit = request["world"], timedelta(seconds=request["limit"] / 3)
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        request["address"], request["port"], world, rank == 0, limit
    )
    say({"rank": rank, "stage": "joined"})
    device = torch.device("cpu")
    if request["cuda"]:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # As in training: gloo for what is on the CPU, nccl for what is on a GPU.
    backend = "cpu:gloo,cuda:nccl" if request["cuda"] else "gloo"
    device_id = device if request["cuda"] else None
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=limit, device_id=device_id
    )
    dist.all_reduce(torch.ones(1))
    say({"rank": rank, "stage": "connected"})
    values = torch.full((request["bytes"] // _FLOAT,), rank + 1.0, device=device)
    dist.all_reduce(values)
    right = bool((values == world * (world + 1) / 2).all())
    values.zero_()
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        dist.all_reduce(values)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    say({"rank": rank, "stage": "reduced", "right": right, "seconds": statistics.median(seconds)})
    dist.destroy_process_group()


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def bus_bandwidth(size: int, seconds: float, world: int) -> float:
    """Bytes a second over the slowest link of a ring: each rank sends and receives 2 (n - 1) / n of
    the tensor (NCCL tests, PERFORMANCE.md)."""
    return size / seconds * 2 * (world - 1) / world


def run_host(request: dict[str, Any]) -> int:
    """All ranks of this host; 0 if every one came through."""
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=run_program, args=(run_rank, request, local_rank), daemon=True)
        for local_rank in range(request["local_ranks"])
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return int(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    signal.alarm(asked["limit"])
    sys.exit(run_host(asked))
