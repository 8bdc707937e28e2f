"""Three optimizer steps under each DeepSpeed JSON of another trainer's recipes.

torchrun --nproc_per_node 2 -m tests.parity.recipe_steps --out FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.data.batches import Epochs, first_windows
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings.deepspeed_json import load
from llama.train.first_steps import optimizer_state_bytes
from tests.parity.topologies import MODEL, case_of
from tests.support.recipes import TRAINED
from tests.support.tiny_runs import write_json

STEPS = 3
"""A schedule that starts at a rate of 0 takes two steps at it."""


def trained(path: Path, mesh: Mesh, device: torch.device) -> dict[str, Any]:
    resolved = resolve_here(load(path, []), mesh, STEPS, MODEL)
    case = case_of(mesh, 4, "block")
    engine = build_engine(case.source, case.options, resolved, mesh, device)
    before = engine.whole_adapter()
    rank, size = mesh.data_parallel_rank, mesh.data_parallel_size
    epochs = Epochs(case.rows, resolved.micro_batch, resolved.accumulation, rank, size, 0)
    steps = [engine.step(window) for window in first_windows(epochs, STEPS)]
    after = engine.whole_adapter()
    found = {
        "losses": [step.loss for step in steps],
        "moved": sum(not torch.equal(before[name], value) for name, value in after.items()),
        "tensors": len(after),
        "replicas": engine.replica_problems(engine.own_values()),
        "stage": resolved.zero_stage,
        "precision": resolved.precision,
        "bytes": optimizer_state_bytes(engine),
    }
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    device = start_processes()
    mesh = create_mesh(1)
    found = {}
    for name, document in TRAINED.items():
        path = out.with_suffix(f".{mesh.rank}.ds.json")
        found[name] = trained(write_json(path, document), mesh, device)
    if mesh.is_main:
        out.write_text(json.dumps(found))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
