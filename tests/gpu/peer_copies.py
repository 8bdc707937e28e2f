"""Two ranks with a GPU each: gathering by copies, and sums of which each reads the other's share,
against NCCL's, launched and within a graph; and how long each takes.

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
from llama.fused import kernels
from llama.kernels.compiled import compile_kernels
from llama.launch.processes import stop_processes
from llama.parallel.peers import outside_bytes
from llama.parallel.sharded import Sharers
from llama.parallel.sums import AS_LONG, Finish, Sums

SHARE = 2**27
"""Bytes of each rank."""
TIMES = 20
RANKS, ROWS, WIDTH = 2, 8192, 4096


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


def summed(device: torch.device) -> dict[str, Any]:
    """Of activations as of two rows of 4,096 tokens of an 8B."""
    group = dist.group.WORLD
    assert group is not None
    sums = Sums(group)
    sums.show(device, WIDTH, torch.bfloat16)
    assert sums.are_read, "the GPUs do not reach one another"
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    x = torch.ones(ROWS, WIDTH, device=device, dtype=torch.bfloat16)
    weight = torch.linspace(0.5, 1.5, WIDTH, device=device, dtype=torch.bfloat16)
    given = torch.randn(TIMES, 64, WIDTH, device=device, generator=generator).bfloat16()

    def places_for(rows: int) -> tuple[torch.Tensor, ...]:
        scale = torch.empty(rows, 1, device=device, dtype=torch.float32)
        return torch.empty_like(x[:rows]), torch.empty_like(x[:rows]), scale

    def by_reading(number: int, rows: int = ROWS, in_parts: bool = False) -> torch.Tensor:
        place = sums.place(rows, WIDTH, torch.bfloat16)
        assert place is not None
        source = given[number].repeat(rows // 64, 1)

        def finish(some: slice) -> None:
            torch.mul(source[some], 1.0, out=place[some])

        if not in_parts:
            finish(slice(None))

        def read(some: slice, shares: Any) -> None:
            places = tuple(out[some] for out in outs)
            kernels.add_norm(x[some], shares, weight, 1e-5, places)

        outs = places_for(rows)
        sums.read(place, read, Finish(finish, AS_LONG) if in_parts else None)
        return outs[1]

    def by_nccl(number: int, rows: int = ROWS) -> torch.Tensor:
        share = given[number].repeat(rows // 64, 1).mul(1.0)
        dist.all_reduce(share, group=group)
        return kernels.add_norm(x[:rows], (share,), weight, 1e-5, places_for(rows))[1]

    def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
        """NCCL's sum was rounded once more, before the residual was added."""
        return float((found - expected).float().norm() / expected.float().norm())

    worst = 0.0
    for number in range(TIMES):  # of unlike sizes, so that ranks come at unlike times
        rows = 64 << (number % 8)
        for in_parts in (False, True):
            found = by_reading(number, rows, in_parts)
            worst = max(worst, apart(found, by_nccl(number, rows)))
    by_reading(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sums.settle()
        of_graph = [by_reading(number, in_parts=number > 3) for number in (3, 4, 5, 6)]
        sums.settle()
    for _ in range(3):
        graph.replay()
    of_nccl = [by_nccl(number) for number in (3, 4, 5, 6)]
    worst = max([worst, *map(apart, of_graph, of_nccl)])
    both = [torch.empty_like(of_graph[0]) for _ in range(RANKS)]
    dist.all_gather(both, of_graph[-1], group=group)
    return {
        "sums_apart": worst,
        "sums_agree": worst < 0.01 and torch.equal(*both),
        "summed_bytes": ROWS * WIDTH * 2,
        "sum_and_norm_by_reading_us": 1e6 * seconds(lambda: by_reading(0)),
        "sum_and_norm_in_parts_us": 1e6 * seconds(lambda: by_reading(0, in_parts=True)),
        "sum_and_norm_by_nccl_us": 1e6 * seconds(lambda: by_nccl(0)),
    }


def main() -> int:
    device = start_processes()
    compile_kernels()
    found = measured(device) | summed(device)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    stop_processes()
    return 0 if found["agree"] and found["sums_agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
