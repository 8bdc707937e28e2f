"""Each known way for this stack to train something else, switched on: `verify` must see it.

torchrun --nproc_per_node 4 -m tests.parity.broken_builds --out FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch.utils.checkpoint
from deepspeed.runtime.engine import DeepSpeedEngine

from llama.adapters.attach import adapters, initialise
from llama.assembly.device_settings import resolve_here
from llama.commands.verify.command import run
from llama.engine import Engine, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, TensorParallel, create_mesh
from llama.settings.deepspeed_json import Resolved
from tests.parity.topologies import ACCUMULATIONS, case_of, document

NOTHING = "nothing broken"
NOTHING_IN_BF16 = "nothing broken, in bf16"


def _mark_only_the_dimension(parameter: Any, dim: int | None) -> None:
    parameter.shard_dim = dim


@contextmanager
def sharded_tensors_unmarked() -> Iterator[None]:
    with (
        patch("llama.parallel.layers.mark_shard", _mark_only_the_dimension),
        patch("llama.adapters.adapter.mark_shard", _mark_only_the_dimension),
    ):
        yield


def _same(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    return x


def _seeded_per_rank(model: Any, seed: int, *more: Any) -> None:
    initialise(model, seed + dist.get_rank() % 2, *more)


def _perturbed_on_one_rank(model: Any, seed: int, *more: Any) -> None:
    initialise(model, seed, *more)
    if dist.get_rank() % 2:
        _, adapter = next(iter(adapters(model)))
        with torch.no_grad():
            adapter.a[0, 0] += 1e-6


def _own_mask(x: torch.Tensor, p: float, *_: Any) -> torch.Tensor:
    return F.dropout(x, p)


def _mean_of_each_micro_batch(self: Engine, model: Any, batch: Any) -> torch.Tensor:
    return _LOSS(self, model, batch) * (8 / max(batch.supervised, 1))


def _counted_on_one_rank(self: Engine, *numbers: int) -> list[int]:
    return [n * self.mesh.data_parallel_size for n in numbers]


def _mean_over_ranks(self: Engine, *numbers: int) -> list[int]:
    supervised, *others = _TOTAL(self, *numbers)
    return [supervised * self.mesh.data_parallel_size, *others]


def _divided_by_accumulation(self: Any, loss: torch.Tensor, **_: Any) -> Any:
    return _BACKWARD(self, loss)


def _last_micro_batch_dropped(self: Any, loss: torch.Tensor, **options: Any) -> Any:
    last = self.is_gradient_accumulation_boundary()
    return _BACKWARD(self, loss * (0.0 if last else 1.0), **options)


def _partial_window_leaks(self: Engine, window: Any) -> Any:
    if len(window) == ACCUMULATIONS[-1]:
        return _STEP(self, window)
    with patch.object(DeepSpeedEngine, "set_gradient_accumulation_boundary", _never_a_boundary):
        return _STEP(self, window)


def _never_a_boundary(self: Any, is_boundary: bool) -> None:
    _BOUNDARY(self, False)


def _a_twentieth_of_the_rate(document: dict[str, Any], *more: Any) -> Resolved:
    """In half precision alone: float32 has limits that see any other rate."""
    resolved = resolve_here(document, *more)
    if resolved.precision != "fp32":
        resolved.engine["optimizer"]["params"]["lr"] /= 20
    return resolved


def _largest_of_own_shard(
    self: TensorParallel, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> None:
    if op != dist.ReduceOp.MAX:
        _REDUCE(self, tensor, op)


_LOSS, _TOTAL, _STEP = Engine._loss, Engine._total, Engine.step
_BACKWARD = DeepSpeedEngine.backward
_BOUNDARY = DeepSpeedEngine.set_gradient_accumulation_boundary
_REDUCE = TensorParallel.all_reduce_
_FORGETFUL = partial(torch.utils.checkpoint.checkpoint, preserve_rng_state=False)

BROKEN: dict[str, Callable[[], Any]] = {
    NOTHING: lambda: patch("llama.commands.verify.command.WINDOWS_PER_EPOCH", 2.5),
    "sharded tensors not marked": sharded_tensors_unmarked,
    "column adapter: partial gradient of A": lambda: patch(
        "llama.adapters.lora.copy_to_shards", _same
    ),
    "row adapter: partial input of B": lambda: patch(
        "llama.adapters.lora.reduce_from_shards", _same
    ),
    "replicated factors seeded per rank": lambda: patch(
        "llama.methods.lora.initialise", _seeded_per_rank
    ),
    "replicated factor perturbed on one rank": lambda: patch(
        "llama.methods.lora.initialise", _perturbed_on_one_rank
    ),
    "each shard draws its own dropout": lambda: patch("llama.adapters.lora.dropout", _own_mask),
    "recomputation draws other dropout": lambda: patch(
        "llama.model.transformer.checkpoint", _FORGETFUL
    ),
    "mean of each micro-batch": lambda: patch.object(Engine, "_loss", _mean_of_each_micro_batch),
    "tokens counted on one rank": lambda: patch.object(Engine, "_total", _counted_on_one_rank),
    "mean over data-parallel ranks left in": lambda: patch.object(
        Engine, "_total", _mean_over_ranks
    ),
    "divided by accumulation steps": lambda: patch.object(
        DeepSpeedEngine, "backward", _divided_by_accumulation
    ),
    "last micro-batch left out": lambda: patch.object(
        DeepSpeedEngine, "backward", _last_micro_batch_dropped
    ),
    "partial window leaks into the next": lambda: patch.object(
        Engine, "step", _partial_window_leaks
    ),
    "softmax over the own vocabulary's maximum": lambda: patch.object(
        TensorParallel, "all_reduce_", _largest_of_own_shard
    ),
}


BROKEN_IN_BF16: dict[str, Callable[[], Any]] = {
    NOTHING_IN_BF16: BROKEN[NOTHING],
    "a rate 20 times too small, in bf16": lambda: patch(
        "llama.commands.verify.command.resolve_here", _a_twentieth_of_the_rate
    ),
}


def agrees(mesh: Mesh, device: torch.device, in_bf16: bool) -> bool:
    case = case_of(mesh, ACCUMULATIONS[-1], "block")
    options = replace(case.options, precision="half" if in_bf16 else "float32")
    config = document(1, case.accumulation) | ({"bf16": {"enabled": True}} if in_bf16 else {})
    return all(c.agrees for c in run(options, config, case.source, mesh, device))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(2)
    found = {}
    for name, broken in (BROKEN | BROKEN_IN_BF16).items():
        with broken():
            found[name] = agrees(mesh, device, in_bf16=name in BROKEN_IN_BF16)
    if mesh.is_main:
        given.out.write_text(json.dumps(found))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
