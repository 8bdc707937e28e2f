"""A checkpoint of a few kilobytes, as an engine would hand it over."""

from __future__ import annotations

import torch

from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint import Checkpoint, RunState
from llama.checkpoint.content import most_bytes
from llama.engine.state import EngineState
from llama.settings import LoRAOptions

ADAPTER = AdapterConfig(LoRAOptions(2, 4.0, 0.0, ("wq",)), "tiny")
SHAPES = {"layers.0.attention.wq.lora.a": (2, 16), "layers.0.attention.wq.lora.b": (16, 2)}
PARAMETERS = 64
MOST = most_bytes(PARAMETERS)


def checkpoint(step: int = 3, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed + step)

    def drawn() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    return Checkpoint(
        engine=EngineState(drawn(), drawn(), drawn(), {"steps": step, "skipped": 1}),
        run=RunState(epoch=1, window=2, loss_sum=0.1 + step, samples_before=["é"]),
        total_steps=9,
        identity={"seed": 0, "model": "ab"},
        topology={"data_parallel": 1},
        random={"torch": "00ff"},
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Bit for bit."""
    ours, theirs = one.engine, other.engine
    tensors = all(
        torch.equal(getattr(ours, what)[name], getattr(theirs, what)[name])
        for what in ("masters", "exp_avg", "exp_avg_sq")
        for name in SHAPES
    )
    return (
        tensors
        and ours.counters == theirs.counters
        and (one.run, one.identity, one.topology, one.random, one.total_steps)
        == (other.run, other.identity, other.topology, other.random, other.total_steps)
    )
