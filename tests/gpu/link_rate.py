"""How fast NCCL is between GPUs: `torchrun --nproc_per_node 2 tests/gpu/link_rate.py`.

Prints the median of five times 20 calls, and bytes a second of bus: 2(n-1)/n of the tensor / time.
"""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist

REPEATS, CALLS = 5, 20
ADAPTER = 8_388_608
"""Elements: LLaMA-7B, rank 16 on wq and wv."""


def microseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        torch.cuda.synchronize()
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / CALLS * 1e3)
    return sorted(times)[REPEATS // 2]


rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
n = dist.get_world_size()


def say(what: str, time: float, size: int) -> None:
    if rank == 0:
        rate = 2 * (n - 1) / n * size / time / 1e3
        print(f"{what} of {size:,} bytes: {time:.1f} us, {rate:.1f} GB/s of bus", flush=True)


for exponent in (1, 20, 24, 25, 26, 27, 28):
    x = torch.zeros(2**exponent // 2, device="cuda", dtype=torch.bfloat16)
    say("all-reduce", microseconds(lambda x=x: dist.all_reduce(x)), 2**exponent)

x = torch.zeros(ADAPTER, device="cuda", dtype=torch.bfloat16)
own, whole = torch.empty_like(x[: ADAPTER // n]), torch.empty_like(x)


def gather() -> None:
    dist.all_gather_into_tensor(whole, own)


say("all-reduce, all-gather", microseconds(lambda: (dist.all_reduce(x), gather())), 2 * ADAPTER)
pieces = list(x.chunk(n))
say(
    "reduce-scatter, all-gather",
    microseconds(lambda: (dist.reduce_scatter(own, pieces), gather())),
    2 * ADAPTER,
)
dist.destroy_process_group()
