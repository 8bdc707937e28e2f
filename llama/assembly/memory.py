"""What `--checkpointing auto` may use, measured once the weights and the optimizer are there."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from llama.assembly.cgroup import cgroup_room
from llama.fused.install import is_installed
from llama.fused.keeping import Sizes, choose
from llama.kernels.products import compute_dtype
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.transformer import Supervision, Transformer
from llama.parallel.mesh import Mesh

UNTRIED, LESS = 0.85, 0.9
"""Of the memory that there is, what is planned with where the plan cannot be tried: the allocator
was seen to leave 3.6 of 24 GiB in pieces too small. And the step down after a plan that failed."""


def keep_what_fits(
    model: Transformer,
    rows: int,
    length: int,
    mesh: Mesh,
    device: torch.device,
    first_step_bytes: int,
) -> None:
    """Have `model` keep what memory holds of micro-batches of `rows` of `length` tokens, beside
    `first_step_bytes` that the optimizer is still to take. The plan comes from arithmetic; where a
    rank can run alone it is then tried, and less planned until it fits. All ranks keep the same:
    shards compute again together. Every rank must call it."""
    sizes = _sizes(model, mesh)
    available = _least(available_bytes(device) - first_step_bytes, device)
    alone = mesh.tensor_parallel.size == 1 and not hasattr(model.output.weight, "ds_id")  # ZeRO-3
    tried = device.type == "cuda" and alone
    share = 1.0 if tried else UNTRIED
    while True:
        model.keep(choose(sizes, rows * length, int(available * share)))
        if not tried or max(model.kept) == Kept.INPUT:
            return
        if _least(_fits(model, rows, length, first_step_bytes, device), device):
            return
        share *= LESS


def _sizes(model: Transformer, mesh: Mesh) -> Sizes:
    block = model.layers[0]
    names = (name.split(".") for name, _ in block.named_parameters())
    return Sizes(
        model.config,
        compute_dtype(model.tok_embeddings.weight).itemsize,
        mesh.tensor_parallel.size,
        is_installed(model),
        tuple(sorted({parts[1] for parts in names if parts[-2:] == ["lora", "a"]})),
        trained=block.get_parameter("attention.wq.weight").requires_grad,
    )


def _least(value: int, device: torch.device) -> int:
    """The least over all ranks."""
    least = torch.tensor(int(value), dtype=torch.int64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)


def _fits(model: Transformer, rows: int, length: int, states: int, device: torch.device) -> bool:
    """Whether two steps' forward and backward passes fit beside the optimizer's `states` bytes.
    They leave no gradient behind, and nothing of DeepSpeed's hears of them."""
    tokens = torch.zeros(rows * length, dtype=torch.int64, device=device)
    positions = torch.arange(length, device=device).repeat(rows)
    documents = Documents(tuple(range(0, rows * length + 1, length)))
    labels = Supervision(torch.arange(rows * length, device=device), tokens)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    try:
        beside = torch.empty(states, dtype=torch.uint8, device=device)
        for _ in range(2):
            torch.autograd.grad(model(tokens, positions, documents, labels), trained)
        del beside
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """What this process may still take: on CUDA of the device, or of its cap; on the CPU half of
    the memory that is free, or that the process's control group has left where that is less,
    divided by the ranks on this machine."""
    if device.type == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        room = cgroup_room()
        least = free if room is None else min(free, room)
        return least // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    held = torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    cap = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), cap) - held
