"""Ours of `test_full_training_against_transformers`: takes the steps and writes what came of them.

On one process or on the ranks of torchrun, which share each window's micro-batches:
`python -m tests.parity.full_steps MODEL OUT STAGES`, stages as `0,1,3`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.engine import Engine, ZeRO3Placement, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.methods.full import FullMethod
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import open_model
from tests.parity.training_case import ADAM, FULL_CLIP, windows
from tests.support.origin import about
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json


def main(folder: str, out: Path, stages: list[int]) -> None:
    device = start_processes()
    mesh = create_mesh(1)
    source = open_model(folder)
    method = FullMethod(LoRAOptions(), source)
    rank, ranks = mesh.data_parallel_rank, mesh.data_parallel_size
    for stage in stages:
        document = settings(stage, 2 // ranks, **ADAM) | {"gradient_clipping": FULL_CLIP}
        if stage == 3:
            document["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        resolved = resolved_json(document, ranks, source.config)
        placement = ZeRO3Placement(resolved, mesh) if stage == 3 else None
        model = build_model(source, torch.float32, device, mesh.tensor_parallel, "block", placement)
        method.prepare(model, 0, device)
        engine = Engine(model, resolved, mesh, device, seed=0)
        steps = [
            engine.step([make_batch(rows, n) for n, rows in enumerate(window)][rank::ranks])
            for window in windows()
        ]
        method.write(engine, out / f"stage-{stage}", None, about(len(steps)))
        if mesh.is_main:
            results = {
                "losses": [step.loss for step in steps],
                "grad_norms": [step.grad_norm for step in steps],
            }
            (out / f"stage-{stage}.json").write_text(json.dumps(results))
        engine.close()
    stop_processes()


if __name__ == "__main__":
    run_program(main, sys.argv[1], Path(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")])
