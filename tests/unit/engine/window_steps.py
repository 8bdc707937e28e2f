"""Steps whose gradients DeepSpeed adds up, and steps whose gradients `Window` does, as a process of
its own: `python -m tests.unit.engine.window_steps MODEL TENSOR_PARALLEL`. The last line says how
they came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from llama.adapters.attach import attach, initialise
from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.engine import Engine, at_device, start_processes
from llama.engine import engine as engine_module
from llama.engine.configuration import with_fused_adam
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.config import LINEARS
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import open_model
from tests.parity.training_case import ADAM, windows
from tests.support.tiny_runs import CONFIG, resolved_json
from tests.support.tiny_runs import deepspeed_json as settings

STEPS = 4
BROKEN = 2
"""The step of which a gradient is not finite."""


def engine_of(folder: str, stage: int, precision: str, tensor_parallel: int = 1) -> Engine:
    """Of the model in `folder`, with adapters that drop."""
    device = start_processes()
    mesh = create_mesh(tensor_parallel)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_model(open_model(folder), dtype, device, mesh.tensor_parallel)
    attach(model, LoRAOptions(4, 8.0, 0.1, LINEARS))
    initialise(model, 0, device)
    document = settings(stage, **ADAM) | {"gradient_clipping": 0.5}
    if precision == "bf16":
        document["bf16"] = {"enabled": True}
    return Engine(model, resolved_json(document, mesh.readers, CONFIG), mesh, device, seed=0)


def scaled(engine: Engine) -> None:
    """As in fp16, with a loss scale that is doubled after every step: in float32, where a power of
    two changes no digit."""
    engine._optimizer.loss_scaler = DynamicLossScaler(
        init_scale=4.0,
        scale_window=1,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=True,
        dtype=torch.half,
    )
    engine._scale = lambda: float(engine._optimizer.loss_scale)  # type: ignore[method-assign]


def steps(
    folder: str,
    stage: int,
    precision: str,
    tensor_parallel: int,
    together: bool,
    change: Callable[[Engine], None] = lambda _: None,
) -> dict[str, Any]:
    as_on_a_gpu = partial(with_fused_adam, device=torch.device("cuda"))
    with mock.patch.object(engine_module, "with_fused_adam", lambda config, _: as_on_a_gpu(config)):
        engine = engine_of(folder, stage, precision, tensor_parallel)
    change(engine)
    if together:
        engine.add_up_gradients()
    loss = engine._loss

    def broken_once(*args: Any) -> torch.Tensor:
        return loss(*args) * (float("nan") if engine.steps == BROKEN else 1.0)

    engine._loss = broken_once  # type: ignore[method-assign]
    decided = mock.patch.object(at_device, "_step", wraps=at_device._step)
    reader = engine.mesh.reader
    own = windows()[reader * STEPS : (reader + 1) * STEPS]
    with decided as calls:
        taken = [
            engine.step([make_batch(rows, stream) for stream, rows in enumerate(window)])
            for window in own
        ]
    assert calls.call_count == (STEPS if together and stage else 0)
    values = engine.whole_adapter()
    return {
        "micro_batches": [len(window) for window in own],
        "losses": [step.loss for step in taken if step.applied],
        "grad_norms": [step.grad_norm for step in taken if step.applied],
        "applied": [step.applied for step in taken],
        "rates": [step.learning_rate for step in taken],
        "scales": [step.loss_scale for step in taken],
        "counters": engine.counters(),
        "adapter": {name: value.tolist() for name, value in values.items()},
    }


def main(folder: str, tensor_parallel: str) -> None:
    found = {
        f"{precision} at ZeRO-{stage}": [
            steps(folder, stage, precision, int(tensor_parallel), together)
            for together in (False, True)
        ]
        for precision, stages in (("float32", (0, 1, 2)), ("bf16", (1, 2)))
        for stage in stages
    }
    alone = torch.distributed.get_world_size() == 1
    for stage, together in ((1, True), (2, False), (3, False)) if alone else ():
        found[f"ZeRO-{stage}, scaled"] = [
            steps(folder, stage, "float32", int(tensor_parallel), together, change)
            for change in (lambda _: None, scaled)
        ]
    main_rank = torch.distributed.get_rank() == 0
    stop_processes()
    if main_rank:
        print(json.dumps(found))


if __name__ == "__main__":
    run_program(main, *sys.argv[1:])
