"""What `--checkpointing auto` may use, measured once the weights and the optimizer are there."""

from __future__ import annotations

import os

import psutil
import torch
import torch.distributed as dist

from llama.adapters.attach import adapters
from llama.assembly.lessening import LESS, Lessening
from llama.base.kinds import KINDS
from llama.fused.install import is_installed
from llama.fused.keeping import choose, within_host
from llama.kernels.compiled import compiled
from llama.launch.cgroup import cgroup_room
from llama.launch.ranks import ranks_of_host
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.transformer import Supervision, Transformer
from llama.parallel.layers import ParallelLinear
from llama.parallel.mesh import Mesh
from llama.parallel.sharded import is_sharded
from llama.planning.job import PRECISIONS, Job, Zero
from llama.planning.levels import for_activations, sizes_of

OF_HOST = 0.95
"""Of the host's free memory, what block inputs may take: pinned, it can not be paged out."""


def keep_what_fits(
    model: Transformer,
    rows: int,
    length: int,
    mesh: Mesh,
    device: torch.device,
    first_step_bytes: int,
) -> Lessening | None:
    """Have `model` keep what memory holds of micro-batches of `rows` of `length` tokens, beside
    `first_step_bytes` that the optimizer is still to take. The plan comes from traces of a step;
    where a rank can run alone it is then tried, and less planned until it fits; not where blocks
    keep their inputs at most, which is for rows that take minutes. It is then given what has
    `model` do with less, should a step run out of memory. All ranks begin with the same: shards
    compute again together. Every rank must call it."""
    job = job_of(model, rows, length, mesh, device)
    sizes = sizes_of(job)
    available = _least(available_bytes(device) - first_step_bytes, device)
    cut = hasattr(model.output.weight, "ds_id") or is_sharded(model.output.weight)  # ZeRO-3, or
    alone = mesh.tensor_parallel.size == mesh.sequence_parallel.size == 1 and not cut
    tried = device.type == "cuda" and alone
    room = for_activations(available) if device.type == "cuda" else available
    host = _least(int(OF_HOST * free_bytes(torch.device("cpu"))), device)
    each = job.tokens * model.config.dim * job.dtype.itemsize

    def choice(room: int) -> list[Kept]:
        return within_host(choose(sizes, model.config.n_layers, room), each, host)

    while True:
        model.keep(choice(room))
        if not tried:
            return None
        lowest = max(model.kept) <= Kept.INPUT
        if lowest or _least(_fits(model, rows, length, first_step_bytes, device), device):
            return Lessening(model, choice, room)
        room = int(room * LESS)


def job_of(model: Transformer, rows: int, length: int, mesh: Mesh, device: torch.device) -> Job:
    """The step of `model` as it is, as far as its activations go."""
    dtype = model.tok_embeddings.weight.dtype
    held = next(layer.kind for layer in model.modules() if isinstance(layer, ParallelLinear))
    return Job(
        config=model.config,
        lora=next((adapter.options for _, adapter in adapters(model)), None),
        base=next(name for name, kind in KINDS.items() if kind is held),
        precision=next(name for name, of in PRECISIONS.items() if of == dtype),  # type: ignore[arg-type]
        zero=Zero(3 if hasattr(model.output.weight, "ds_id") else 0),
        micro_batch=rows,
        seq_len=length,
        fused=is_installed(model) or compiled(),
        tensor_parallel=mesh.tensor_parallel.size,
        sequence_parallel=mesh.sequence_parallel.size,
        device="cuda" if device.type == "cuda" else "cpu",
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


def free_bytes(device: torch.device) -> int:
    """What this process may still take: on CUDA of the device, of which other processes may hold
    some, or of its cap; on the CPU its share of what programs can have, files' pages included that
    the system would give back."""
    if device.type == "cpu":
        return _share_of_host(psutil.virtual_memory().available)
    held = torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    cap = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), cap) - held


def available_bytes(device: torch.device) -> int:
    """What may be planned with: on CUDA `free_bytes`; on the CPU half of this process's share of
    the memory that nothing uses."""
    if device.type == "cpu":
        unused = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return _share_of_host(unused, 2)
    return free_bytes(device)


def _share_of_host(free: int, parts: int = 1) -> int:
    """Of `free` bytes, or of what the process's control group has left where that is less, one of
    `parts` parts, divided by the ranks on this machine."""
    room = cgroup_room()
    least = free if room is None else min(free, room)
    return least // parts // (ranks_of_host(os.environ) or 1)
