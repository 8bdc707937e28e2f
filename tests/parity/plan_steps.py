"""Ours of `test_plan`: takes real steps and writes the most that lived in one.

    torchrun --nproc_per_node N -m tests.parity.plan_steps OUT CASE...

A process group lives as long as its process, so cases of as many ranks share one.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from llama.adapters.attach import adapters, attach, initialise
from llama.adapters.sequence import run_on_share
from llama.assembly.engine import DTYPES
from llama.assembly.model import build_model
from llama.assembly.sharded import ShardedPlacement, run_sharded
from llama.engine import Engine, ZeRO3Placement, gathered, start_processes
from llama.kernels import products
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.parallel.sharded import ShardedBase, Sharers
from llama.planning.storages import LiveStorages, every_tensor
from llama.planning.trace import batch_of
from llama.weights.load import Placement
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.plan_cases import CASES, Case

STEPS = 3
"""The first makes the moments and records ZeRO-3's order; what is asked is the last."""
TRIALS = 10
"""Of several ranks the least of so many steps is asked: a thread of gloo's lets go of a message's
tensors when it comes to it, on a busy machine after more has been made."""


def main(out: Path, names: list[str]) -> None:
    device = start_processes()
    cases = [CASES[name] for name in names]
    sharers = max(case.base_sharers for case in cases)
    mesh = create_mesh(cases[0].tensor_parallel, cases[0].sequence_parallel, sharers)
    found = {name: measured(CASES[name], mesh, device) for name in names}
    if mesh.is_main:
        out.write_text(json.dumps(found))
    stop_processes()


def measured(case: Case, mesh: Mesh, device: torch.device) -> dict[str, int]:
    """Bytes of live storages of this rank: the most within a step, and what lies there before."""
    storages = LiveStorages()
    storages.ignore(every_tensor())  # DeepSpeed lets go of some of an engine's only at the end
    products.cpu_has_bf16 = lambda: case.has_bf16  # type: ignore[assignment]
    engine = engine_of(case, mesh, device)
    window = [batch_of(case.job()) for _ in range(case.accumulation)]
    for _ in range(STEPS - 1):
        engine.step(window)
    gc.collect()
    storages.add(every_tensor())
    before, peaks = storages.total, []
    with storages:
        for _ in range(1 if mesh.world_size == 1 else TRIALS):
            gc.collect()
            storages.peak = storages.total
            engine.step(window)
            peaks.append(storages.peak)
    engine.close()
    del engine
    gc.collect()
    return {"peak": min(peaks), "before": before}


def engine_of(case: Case, mesh: Mesh, device: torch.device) -> Engine:
    """As `build_engine` makes it; without adapters everything trains."""
    resolved, dtype = case.resolved(), DTYPES[case.precision]
    source = ModelSource("random", RandomReader(case.config), None)
    placement: Placement | None = ZeRO3Placement(resolved, mesh) if case.stage == 3 else None
    base = None
    if case.base_sharers > 1:
        assert mesh.base_group is not None
        sharers = Sharers.of_group(mesh.base_group, device)
        base = ShardedBase(sharers, device, case.config.n_layers, case.config.tied_embedding)
        placement = ShardedPlacement(base)
    tp, mode = mesh.tensor_parallel, case.checkpointing
    model = build_model(source, dtype, device, tp, mode, placement, case.base)
    if case.lora is None:
        model.requires_grad_(True)
    else:
        attach(model, case.lora)
        initialise(model, 0, device, gathered)
        for _, adapter in adapters(model):
            adapter.to(dtype)
    run_on_share(model, mesh.sequence_parallel)
    engine = Engine(model, resolved, mesh, device, seed=0)
    if base is not None:
        run_sharded(model, base)
    return engine


if __name__ == "__main__":
    run_program(main, Path(sys.argv[1]), sys.argv[2:])
