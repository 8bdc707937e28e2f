"""Steps that go well, and the same steps in which memory runs out, as a process of its own:
`python -m tests.unit.engine.again_steps MODEL`. The last line says how they came out."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from llama.adapters.attach import attach, initialise
from llama.assembly.lessening import Lessening
from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.engine import Engine, start_processes
from llama.fused.keeping import Sizes, choose
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.kept import Kept
from llama.model.transformer import Transformer, run_model
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import open_model
from tests.parity.training_case import ADAM, windows
from tests.support.tiny_runs import CONFIG, resolved_json
from tests.support.tiny_runs import deepspeed_json as settings

STEPS = 3
BYTES = {Kept.INPUT: 1, Kept.FFN_INPUTS: 10, Kept.ALL: 100}
SIZES = Sizes(BYTES, dict.fromkeys(BYTES, 0))
FORWARD, BACKWARD = (1, 6), (3, 10)
"""Calls of the model, retries among them, in whose passes memory runs out: with two micro-batches a
step that is the second's forward pass, the second's backward, and so on."""


def choice(room: int) -> list[Kept]:
    return choose(SIZES, CONFIG.n_layers, room)


class RunsOut:
    """In the place of `run_model`."""

    def __init__(self) -> None:
        self.calls = self.failures = 0

    def __call__(self, *arguments: Any) -> torch.Tensor:
        call, self.calls = self.calls, self.calls + 1
        if call in FORWARD:
            self._fail()
        loss = run_model(*arguments)
        if call in BACKWARD:
            loss.register_hook(lambda gradient: self._fail())
        return loss

    def _fail(self) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


def steps(folder: str, stage: int, precision: str, runs_out: bool) -> dict[str, Any]:
    device = start_processes()
    mesh = create_mesh(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_model(open_model(folder), dtype, device)
    attach(model, LoRAOptions(4, 8.0, 0.1))
    initialise(model, 0, device)
    document = settings(stage, **ADAM) | {"gradient_clipping": 0.5}
    if precision == "bf16":
        document["bf16"] = {"enabled": True}
    engine = Engine(model, resolved_json(document, 1, CONFIG), mesh, device, seed=0)
    run = RunsOut()
    if runs_out:
        assert isinstance(engine.model, Transformer)
        engine.model.run_model = run
        engine.add_up_gradients(Lessening(engine.model, choice, 200))
    taken = [
        engine.step([make_batch(rows, stream) for stream, rows in enumerate(window)])
        for window in windows()[:STEPS]
    ]
    return {
        "failures": run.failures,
        "kept": model.kept,
        "losses": [step.loss for step in taken],
        "grad_norms": [step.grad_norm for step in taken],
        "rates": [step.learning_rate for step in taken],
        "adapter": {name: value.tolist() for name, value in engine.whole_adapter().items()},
    }


def main(folder: str) -> None:
    found = {
        f"{precision} at ZeRO-{stage}": [
            steps(folder, stage, precision, runs_out) for runs_out in (False, True)
        ]
        for precision, stages in (("float32", (0, 1, 2)), ("bf16", (1, 2)))
        for stage in stages
    }
    stop_processes()
    print(json.dumps(found))


if __name__ == "__main__":
    run_program(main, sys.argv[1])
