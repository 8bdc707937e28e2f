"""Ranks with a GPU each: gathering by copies against NCCL's, launched and within a graph; and how
long each takes.

    torchrun --nproc_per_node 2 -m tests.gpu.peer_copies

A line of JSON; it ends with 1 where anything differs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.parallel.peers import outside_bytes
from llama.parallel.sharded import Sharers

SHARE = 2**27
"""Bytes of each rank."""
TIMES = 20


def seconds(work: Callable[[], Any]) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(TIMES):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMES


def measured(device: torch.device) -> dict[str, Any]:
    group = dist.group.WORLD
    assert group is not None
    sharers = Sharers.of_group(group, device)
    assert sharers.by_copies
    units, agree = [sharers.room(SHARE, device) for _ in range(3)], []
    for number, unit in enumerate(units):
        generator = torch.Generator(device).manual_seed(10 * number + sharers.rank)
        unit.random_(0, 256, generator=generator)
    whole, expected = (
        torch.empty(SHARE * sharers.count, dtype=torch.uint8, device=device) for _ in range(2)
    )
    for unit in 4 * units:
        sharers.gather(whole, unit).wait()
        dist.all_gather_into_tensor(expected, unit, group=group)
        agree.append(torch.equal(whole, expected))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sharers.gather(whole, units[1]).wait()
    dist.all_gather_into_tensor(expected, units[1], group=group)
    for _ in range(3):
        whole.zero_()
        graph.replay()
        agree.append(torch.equal(whole, expected))
    return {
        "agree": all(agree),
        "share_bytes": SHARE,
        "by_copies_us": 1e6 * seconds(lambda: sharers.gather(whole, units[0]).wait()),
        "by_nccl_us": 1e6 * seconds(lambda: dist.all_gather_into_tensor(expected, units[0])),
        "outside_bytes": outside_bytes(),
    }


def main() -> int:
    found = measured(start_processes())
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    stop_processes()
    return 0 if found["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
