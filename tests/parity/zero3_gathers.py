"""How much of the model is whole at a time under ZeRO-3, and who reads it.

torchrun --nproc_per_node 2 -m tests.parity.zero3_gathers --out FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama.assembly.engine import build_engine
from llama.engine import ZeRO3Placement, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.methods.method import Watched
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions, VerifyOptions
from llama.train.first_steps import FirstStepsCheck
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.nonfinite_steps import window
from tests.parity.topologies import MODEL, document
from tests.support.tiny_runs import resolved_json

CONFIG = replace(MODEL, n_layers=8)
BLOCK = (CONFIG.parameter_count() - 2 * CONFIG.vocab_size * CONFIG.dim) // CONFIG.n_layers


class CountingReader(RandomReader):
    """Counts the elements that this rank reads."""

    elements = 0

    def read(self, *args: Any, **options: Any) -> torch.Tensor:
        found = super().read(*args, **options)
        CountingReader.elements += found.numel()
        return found


def whole_elements(model: torch.nn.Module) -> int:
    """Elements of parameters that are gathered now."""
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(1)
    options = VerifyOptions(
        deepspeed=Path("settings"),
        lora=LoRAOptions(rank=2, alpha=4.0, dropout=0.0, targets=("wq",)),
    )
    config = document(3, 2)
    zero = config["zero_optimization"]
    zero.update(stage3_max_live_parameters=2 * BLOCK, stage3_max_reuse_distance=BLOCK)
    zero.update(stage3_prefetch_bucket_size=BLOCK // 2)
    resolved = resolved_json(config, mesh.data_parallel_size, CONFIG)
    loading = _watch_loading()
    source = ModelSource("tiny", CountingReader(CONFIG, 0), None)
    engine = build_engine(source, options, resolved, mesh, device)
    watched = Watched(engine.own_values, lambda flags: flags)
    check, problems = FirstStepsCheck(engine.trainable, watched), []
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        most = max(most, whole_elements(engine.model))

    def after_forward(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        look()
        if output.requires_grad:
            output.register_hook(look)

    for module in engine.model.modules():
        module.register_forward_hook(after_forward)
    for number in range(3):
        step = engine.step(window(mesh, number))
        problems += check.after_step(step.applied, step.learning_rate)
    found = {
        "total": CONFIG.parameter_count(),
        "block": BLOCK,
        "most_whole": most,
        "whole_after_step": whole_elements(engine.model),
        "most_whole_loading": loading(),
        "trains": check.done and not problems,
        "elements_read": CountingReader.elements,
    }
    given.out.with_suffix(f".{mesh.rank}").write_text(json.dumps(found))
    stop_processes()


def _watch_loading() -> Callable[[], int]:
    """The largest number of elements that were whole when a parameter had been placed."""
    placed: list[Any] = []
    most = 0
    original = ZeRO3Placement.place

    def place(self: ZeRO3Placement, name: str, parameter: torch.nn.Parameter, part: Any) -> None:
        nonlocal most
        placed.append(parameter)
        most = max(most, sum(p.numel() for p in placed))
        original(self, name, parameter, part)

    ZeRO3Placement.place = place  # type: ignore[method-assign]
    return lambda: most


if __name__ == "__main__":
    run_program(main)
