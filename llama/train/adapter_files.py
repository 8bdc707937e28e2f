"""The adapter of a running engine, whole, as a PEFT folder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from llama.lora import peft_format
from llama.lora.peft_format import AdapterConfig
from llama.parallel.layers import shard_dim
from llama.parallel.mesh import TensorParallel
from llama.train.agreement import on_main
from llama.train.checkpoint.files import write_folder
from llama.train.engine import Engine


def whole_adapter(engine: Engine) -> dict[str, torch.Tensor]:
    """Name to float32 tensor, the shards joined, on the CPU. Every rank must call it."""
    tp = engine.mesh.tensor_parallel
    return {
        name: _joined(value, shard_dim(engine.trainable[name]), tp, engine.device)
        for name, value in engine.adapter_values().items()
    }


def _joined(
    value: torch.Tensor, dim: int | None, tp: TensorParallel, device: torch.device
) -> torch.Tensor:
    if dim is None or tp.group is None:
        return value
    shard = value.to(device)
    shards = [torch.empty_like(shard) for _ in range(tp.size)]
    dist.all_gather(shards, shard.contiguous(), group=tp.group)
    return torch.cat(shards, dim=dim).cpu()


def save_adapter(engine: Engine, folder: Path, config: AdapterConfig) -> None:
    """Write `folder` as one: it appears whole or not at all. Every rank must call it. Raises
    `TrainingError` on all of them where it cannot be written."""
    state = whole_adapter(engine)
    on_main(engine.mesh, lambda: write_folder(folder, peft_format.contents(state, config)))
