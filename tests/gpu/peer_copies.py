"""Ranks with a GPU each: gathering by copies, and of two ranks sums, against NCCL's, launched and
within graphs; and how long each takes.

    torchrun --nproc_per_node 2 -m tests.gpu.peer_copies

Each line is JSON; it ends with 1 where anything differs."""

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
from llama.parallel.peers import PARTS, outside_bytes, pair_sums
from llama.parallel.sharded import Sharers

ROWS, WIDTH = 4096, 4096
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


def shares(rank: int, number: int, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(1000 * number + rank)
    return [
        torch.randn(ROWS, WIDTH, generator=generator, device=device).bfloat16()
        for _ in range(PARTS)
    ]


def sums_agree(group: Any, device: torch.device) -> bool:
    """Over many sums, each beside a product that changes how long ranks take."""
    pair, agree = pair_sums(group, device), True
    assert pair is not None
    rank = dist.get_rank(group)
    for number in range(30):
        own = shares(rank, number, device)
        expected = [x.clone() for x in own]
        others = []
        for x in own:
            others.append(pair.begin(x))
            for _ in range((number + rank) % 3):
                torch.mm(own[0].float()[:512], own[0].float()[:, :512])
        for x, y, other in zip(own, expected, others, strict=True):
            found = x + other()
            dist.all_reduce(y, group=group)
            agree = agree and torch.equal(found, y)
    return agree


def graphs_agree(group: Any, device: torch.device) -> bool:
    """Sums within a graph that is repeated, others launched in between, an odd number of each, and
    ranks that take unlike times."""
    pair, rank = pair_sums(group, device), dist.get_rank(group)
    assert pair is not None
    x = shares(rank, 0, device)[0][:1024]
    found = torch.empty_like(x)

    def rounds(number: int) -> None:
        found.copy_(x)
        for _ in range(number):
            halves = list(found.chunk(2))
            others = [pair.begin(half) for half in halves]
            for half, other in zip(halves, others, strict=True):
                half.add_(other())
            found.mul_(0.5)

    rounds(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        pair.settle()
        rounds(3)
        pair.settle()
    agree = True
    for number in range(20):
        x.copy_(shares(rank, number, device)[0][:1024])
        expected = x.clone()
        for _ in range(3):
            dist.all_reduce(expected, group=group)
            expected.mul_(0.5)
        if (number + rank) % 2:
            torch.cuda._sleep(3_000_000)
        graph.replay()
        agree = agree and torch.equal(found, expected)
        if number % 3 == 0:
            rounds(1)
            pair.settle()
    return agree


def gathering_agrees(group: Any, device: torch.device, nbytes: int) -> tuple[bool, float, float]:
    sharers = Sharers.of_group(group, device)
    rank, agree = dist.get_rank(group), True
    assert sharers.by_copies
    units = [sharers.room(nbytes, device) for _ in range(3)]
    for number, unit in enumerate(units):
        generator = torch.Generator(device).manual_seed(10 * number + rank)
        unit.random_(0, 256, generator=generator)
    whole, expected = (
        torch.empty(nbytes * sharers.count, dtype=torch.uint8, device=device) for _ in range(2)
    )
    for _ in range(4):
        for unit in units:
            sharers.gather(whole, unit).wait()
            dist.all_gather_into_tensor(expected, unit, group=group)
            agree = agree and torch.equal(whole, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sharers.gather(whole, units[1]).wait()
    dist.all_gather_into_tensor(expected, units[1], group=group)
    for _ in range(3):
        whole.zero_()
        graph.replay()
        agree = agree and torch.equal(whole, expected)
    by_copies = seconds(lambda: sharers.gather(whole, units[0]).wait())
    by_nccl = seconds(lambda: dist.all_gather_into_tensor(expected, units[0], group=group))
    return agree, by_copies, by_nccl


def main() -> int:
    device = start_processes()
    group = dist.group.WORLD
    found: dict[str, Any] = {"outside_bytes_before": outside_bytes()}
    agree = []
    if dist.get_world_size() == 2:
        agree += [sums_agree(group, device), graphs_agree(group, device)]
        pair = pair_sums(group, device)
        assert pair is not None
        x = shares(0, 0, device)[0]
        found |= {
            "sum_by_copies_us": 1e6 * seconds(lambda: x + pair.begin(x)()),
            "sum_by_nccl_us": 1e6 * seconds(lambda: dist.all_reduce(x, group=group)),
            "bytes": x.nbytes,
        }
    same, by_copies, by_nccl = gathering_agrees(group, device, 2**27)
    agree.append(same)
    found |= {"gather_by_copies_us": 1e6 * by_copies, "gather_by_nccl_us": 1e6 * by_nccl}
    found |= {"share_bytes": 2**27, "agree": agree, "outside_bytes": outside_bytes()}
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    stop_processes()
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
