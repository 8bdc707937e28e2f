"""NaN in one rank's loss and in a frozen weight, in each precision and at each ZeRO stage.

    torchrun --nproc_per_node 2 -m tests.parity.nonfinite_steps --tensor_parallel 1 --out FILE

fp16 goes through DeepSpeed's fp16 engine on a CPU too: its accelerator is patched to allow it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator

from llama.assembly.engine import build_engine
from llama.data.batches import make_batch
from llama.data.types import Batch, Example
from llama.engine import Engine, start_processes
from llama.errors import TrainingError
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from tests.parity.topologies import MODEL, case_of, document
from tests.support.tiny_runs import resolved_json

CASES = [
    (precision, stage)
    for precision in ("float32", "bf16", "fp16")
    for stage in range(4)
    if stage or precision == "float32"
]
FOR_EVER = (0, 1, 3)
"""Stages at which the weight is poisoned; ZeRO-2 takes the same way as ZeRO-1 from there."""
POWER = 6
"""Of the first loss scale: from there to the smallest are as many halvings."""
PLACE = "layers.1.feed_forward.w3"


def settings(precision: str, stage: int) -> dict[str, Any]:
    config = document(stage, 2)
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if precision == "fp16":
        scaling = {"loss_scale_window": 1000, "hysteresis": 1, "initial_scale_power": POWER}
        config["fp16"] = {"enabled": True, **scaling}
    return config


def window(mesh: Mesh, step: int) -> list[Batch]:
    streams = range(2 * mesh.data_parallel_rank, 2 * mesh.data_parallel_rank + 2)
    return [make_batch([[_example(10 * step + stream)]], stream) for stream in streams]


def _example(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MODEL.vocab_size, (24,), generator=generator).tolist()
    return Example(ids, ids, row=1)


def build(precision: str, stage: int, mesh: Mesh, device: torch.device) -> Engine:
    case, config = case_of(mesh, 2, "block"), settings(precision, stage)
    resolved = resolved_json(config, mesh.data_parallel_size, MODEL, fp16=True)
    return build_engine(case.source, case.options, resolved, mesh, device)


def _nan_on_the_last_rank(self: Engine, model: Any, batch: Batch) -> torch.Tensor:
    loss = _LOSS(self, model, batch)
    return loss * math.nan if self.mesh.rank == self.mesh.world_size - 1 else loss


_LOSS = Engine._loss


def poison(engine: Engine) -> None:
    """NaN into this rank's share of a frozen weight, on the last rank alone."""
    if engine.mesh.rank == engine.mesh.world_size - 1:
        weight: Any = engine.model.get_parameter(f"{PLACE}.weight")
        held = weight.ds_tensor if hasattr(weight, "ds_tensor") else weight.detach()
        held.view(-1)[0] = math.nan


def trial(precision: str, stage: int, mesh: Mesh, device: torch.device) -> dict[str, Any]:
    engine = build(precision, stage, mesh, device)
    windows = (window(mesh, step) for step in cycle(range(5)))
    first = engine.step(next(windows))
    before = engine.whole_adapter()
    with patch.object(Engine, "_loss", _nan_on_the_last_rank):
        skipped = engine.step(next(windows))
    after = engine.whole_adapter()
    again = engine.step(next(windows))
    found = {
        "applied": [first.applied, skipped.applied, again.applied],
        "unchanged": all(torch.equal(before[name], after[name]) for name in before),
        "replicas": engine.replica_problems(engine.own_values()),
        "reason": skipped.skip_reason,
        "finite": all(bool(t.isfinite().all()) for t in engine.whole_adapter().values()),
    }
    if stage in FOR_EVER:
        poison(engine)
        found["stopped"], found["steps_until_stopped"] = until_stopped(engine, windows)
    engine.close()
    return found


def until_stopped(engine: Engine, windows: Iterator[list[Batch]]) -> tuple[str | None, int]:
    for taken in range(1, 50):
        try:
            engine.step(next(windows))
        except TrainingError as error:
            return str(error), taken
    return None, 50


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor_parallel", type=int, required=True)
    parser.add_argument("--stages", default="0123")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(given.tensor_parallel)
    cases = [case for case in CASES if str(case[1]) in given.stages]
    with patch.object(get_accelerator(), "is_fp16_supported", lambda: True):
        found = {f"{p} ZeRO-{stage}": trial(p, stage, mesh, device) for p, stage in cases}
    given.out.with_suffix(f".{mesh.rank}").write_text(json.dumps(found))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
