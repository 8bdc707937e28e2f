"""Steps that go well, and the same steps in which memory runs out, as a process of its own:
`python -m tests.unit.engine.again_steps MODEL`. The last line says how they came out."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from llama.assembly.lessening import Lessening
from llama.data.batches import make_batch
from llama.fused.keeping import Sizes, choose
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.kept import Kept
from llama.model.transformer import Transformer, run_model
from tests.parity.training_case import windows
from tests.support.tiny_runs import CONFIG
from tests.unit.engine.window_steps import engine_of

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
    engine = engine_of(folder, stage, precision)
    model = engine.model
    assert isinstance(model, Transformer)
    run = RunsOut()
    if runs_out:
        model.run_model = run
        engine.add_up_gradients(Lessening(model, choice, 200), looks_for_room=True)
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
