"""Ours of `test_training_against_peft`: takes the steps and writes what came of them.

A process group lives as long as its process, so this is a process of its own:
`python -m tests.parity.engine_steps MODEL OUT VARIANT`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from llama.adapters import peft_format
from llama.adapters.attach import attach, initialise
from llama.adapters.peft_format import AdapterConfig
from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.engine import Engine, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import open_model
from tests.parity.training_case import ADAM, CLIP, STAGES, VARIANTS, windows
from tests.support.tiny_runs import CONFIG, resolved_json
from tests.support.tiny_runs import deepspeed_json as settings


def main(folder: str, out: Path, lora: LoRAOptions) -> None:
    device = start_processes()
    mesh = create_mesh(1)
    adapter = AdapterConfig(lora, folder)
    results = {}
    for stage in STAGES:
        model = build_model(open_model(folder), torch.float32, device, checkpointing="block")
        attach(model, lora)
        initialise(model, 0, device)
        document = settings(stage, **ADAM) | {"gradient_clipping": CLIP}
        resolved = resolved_json(document, 1, CONFIG)
        engine = Engine(model, resolved, mesh, device, seed=0)
        if stage == STAGES[0]:
            save(out / "initial", engine, adapter)
        steps = [
            engine.step([make_batch(rows, stream) for stream, rows in enumerate(window)])
            for window in windows()
        ]
        save(out / f"stage-{stage}", engine, adapter)
        results[stage] = {
            "losses": [step.loss for step in steps],
            "grad_norms": [step.grad_norm for step in steps],
            "supervised": [step.supervised for step in steps],
        }
    (out / "results.json").write_text(json.dumps(results))
    stop_processes()


def save(folder: Path, engine: Engine, adapter: AdapterConfig) -> None:
    peft_format.save(folder, engine.whole_adapter() | engine.fixed_values(), adapter)


if __name__ == "__main__":
    run_program(main, sys.argv[1], Path(sys.argv[2]), VARIANTS[sys.argv[3]])
