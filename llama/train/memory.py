"""What `--checkpointing auto` may use, measured once the weights and the optimizer are there."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from llama.model.fused_block import fusible
from llama.model.keeping import Sizes, choose
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh
from llama.parallel.products import compute_dtype

STATES = 16
"""Bytes a trainable parameter is still to take at the first step: two moments, its gradient."""


def keep_what_fits(model: Transformer, tokens: int, mesh: Mesh, device: torch.device) -> None:
    """Have `model` keep what memory holds of micro-batches of up to `tokens` tokens. All ranks
    keep the same: shards compute again together. Every rank must call it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    available = available_bytes(device) - STATES * sum(p.numel() for p in trained)
    least = torch.tensor(available, dtype=torch.int64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    block = model.layers[0]
    names = (name.split(".") for name, _ in block.named_parameters())
    sizes = Sizes(
        model.config,
        compute_dtype(model.tok_embeddings.weight).itemsize,
        mesh.tensor_parallel.size,
        fusible(block, device),
        tuple(sorted({parts[1] for parts in names if parts[-2:] == ["lora", "a"]})),
    )
    model.keep(choose(sizes, tokens, int(least)))


def available_bytes(device: torch.device) -> int:
    """What this process may still take: on CUDA of the device, or of its cap; on the CPU half of
    the memory that is free, divided by the ranks on this machine."""
    if device.type == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    held = torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    cap = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), cap) - held
