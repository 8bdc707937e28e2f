"""A checkpoint's state into the engines of all ranks, which then go on bit for bit."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from llama.checkpoint.content import Checkpoint
from llama.checkpoint.shards import ShardedState, ShardReader
from llama.engine import Engine
from llama.engine.state import MOMENTS, EngineState
from llama.parallel.agreement import on_every, on_main


def restore(checkpoint: Checkpoint | None, engine: Engine) -> dict[str, str]:
    """Put in `checkpoint`, which the main rank has read and the others need not have; gives the
    state of its random generators. Every rank must call it. Of whole tensors the main rank sends
    them: no file system need be shared. Of sharded ones each rank reads what it needs."""
    state, random = on_main(engine.mesh, lambda: _description(checkpoint))
    if isinstance(state, ShardedState):
        reader = ShardReader(state, engine.trainable, engine.mesh.tensor_parallel)
        on_every(engine.mesh, reader.require_files)
        engine.load(reader, state.counters)
        return random
    shapes, counters = state
    mine: Any = checkpoint.engine if checkpoint else None
    tensors = {
        what: {
            name: _shared(getattr(mine, what)[name] if mine else torch.empty(shape), engine)
            for name, shape in of_these.items()
        }
        for what, of_these in shapes.items()
    }
    engine.load_state(EngineState(**tensors, counters=counters))
    return random


def _description(checkpoint: Checkpoint | None) -> tuple[Any, dict[str, str]]:
    assert checkpoint is not None
    if isinstance(checkpoint.engine, ShardedState):
        return checkpoint.engine, checkpoint.random
    shapes = {
        what: {name: tuple(t.shape) for name, t in getattr(checkpoint.engine, what).items()}
        for what in ("masters", *MOMENTS, "fixed")
    }
    return (shapes, checkpoint.engine.counters), checkpoint.random


def _shared(tensor: torch.Tensor, engine: Engine) -> torch.Tensor:
    """The main rank's `tensor`, on every rank."""
    if engine.mesh.world_size == 1:
        return tensor
    on_device = tensor.to(engine.device)
    dist.broadcast(on_device, src=0)
    return on_device.cpu()
