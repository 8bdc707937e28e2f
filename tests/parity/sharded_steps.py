"""A base cut over ranks against a whole one, case by case: numbers, bytes on the wire, memory.

torchrun --nproc_per_node 2 -m tests.parity.sharded_steps --tensor_parallel 1 --out FILE
torchrun --nproc_per_node 4 -m tests.parity.sharded_steps --shard_base 2 --out FILE

Each rank writes `FILE.<rank>`: of each case whether all is equal bit for bit, of each pass what was
gathered. Cases share the processes, whose start is most of the time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llama.assembly import engine as assembly
from llama.assembly.engine import build_engine
from llama.assembly.sharded import RunSharded
from llama.commands.verify.command import Case, asked_run
from llama.engine import Engine, start_processes
from llama.launch.processes import launched_world_size, stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.parallel.sharded import Pending, ShardedBase, Sharers
from llama.settings.base import HALF, Base
from llama.settings.deepspeed_json import Resolved
from llama.settings.sharing import ALL, WHOLE, Ranks, sharers
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity import topologies
from tests.parity.nonfinite_steps import window
from tests.parity.topologies import case_of, document
from tests.support.tiny_runs import resolved_json

LAYERS = 6
MODEL = replace(topologies.MODEL, n_layers=LAYERS)
CASES: dict[str, dict[str, Any]] = {
    "nothing recomputed": {"checkpointing": "none"},
    "feed-forward recomputed": {"checkpointing": "ffn", "stage": 2},
    "blocks recomputed": {"checkpointing": "block"},
    "accumulated": {"accumulation": 3, "stage": 2},
    "without ZeRO": {"stage": 0},
    "dora": {"lora": {"kind": "dora"}},
    "pissa": {"lora": {"start": "pissa"}},
    "tied, in bf16": {"tied_embedding": True, "precision": "bf16"},
    "in four bits": {"base": "nf4"},
    "in eight bits": {"base": "fp8", "checkpointing": "none"},
    "two blocks": {"n_layers": 2, "checkpointing": "none"},
}
"""What differs from LoRA of all layers with dropout, ZeRO-1, one micro-batch."""
ADDED_UP = ("blocks recomputed", "accumulated", "without ZeRO")
"""Those that are also compared as a GPU takes them: gradients added up before DeepSpeed has them,
over either base."""
NOT_A_NUMBER = "NaN on one rank"


class CountingReader(RandomReader):
    """Counts the elements that this rank reads."""

    elements = 0

    def read(self, *args: Any, **options: Any) -> torch.Tensor:
        found = super().read(*args, **options)
        CountingReader.elements += found.numel()
        return found


class CountingBase(ShardedBase):
    """Counts the bytes that reach this rank from others."""

    received = 0

    def __init__(self, sharers: Sharers, *more: Any) -> None:
        def gather(whole: torch.Tensor, share: torch.Tensor) -> Pending:
            CountingBase.received += whole.nbytes - share.nbytes
            return sharers.gather(whole, share)

        super().__init__(replace(sharers, gather=gather), *more)


def case(
    mesh: Mesh,
    accumulation: int = 1,
    checkpointing: str = "block",
    stage: int = 1,
    precision: str = "fp32",
    lora: dict[str, Any] | None = None,
    base: Base = HALF,
    **of_model: Any,
) -> tuple[Case, Resolved]:
    given = case_of(mesh, accumulation, checkpointing)
    config = replace(MODEL, **of_model)
    adapter = replace(given.options.lora, **(lora or {}))
    options = replace(given.options, lora=adapter, base=base)
    source = ModelSource("tiny", CountingReader(config, options.seed), None)
    settings = document(stage, accumulation)
    if precision != "fp32":
        settings[precision] = {"enabled": True}
    resolved = resolved_json(settings, mesh.data_parallel_size, config)
    return replace(given, options=options, source=source), resolved


def added_up(name: str) -> str:
    return f"{name}, added up"


def adding_up(*given: Any) -> Engine:
    engine = build_engine(*given)
    engine.add_up_gradients()
    return engine


def is_equal(case: Case, resolved: Resolved, mesh: Mesh, device: torch.device) -> bool:
    """Whether five steps are the same to the last digit over a sharded base: losses, gradients'
    norms, what the adapter became."""
    options = replace(case.options, shard_base=ALL)  # the mesh says of how many
    before = CountingBase.received
    plain = asked_run(case, resolved, mesh, device)
    cut = asked_run(replace(case, options=options), resolved, mesh, device)
    assert CountingBase.received > before, "nothing was gathered"
    numbers = (cut.losses, cut.grad_norms) == (plain.losses, plain.grad_norms)
    return numbers and all(torch.equal(cut.adapter[name], v) for name, v in plain.adapter.items())


def is_skipped_alike(mesh: Mesh, device: torch.device) -> bool:
    """Whether NaN in the last rank's loss of the second step is met as over a whole base: the step
    taken again to name what it was, skipped by all, and the steps after it equal."""
    given, resolved = case(mesh, accumulation=2)
    found = []
    for word in (WHOLE, ALL):
        options = replace(given.options, shard_base=word)
        engine = build_engine(given.source, options, resolved, mesh, device)
        loss, steps = engine._loss, []
        for number in range(3):
            spoilt = number == 1 and mesh.rank == mesh.world_size - 1
            factor = float("nan") if spoilt else 1.0
            engine._loss = lambda *args, by=factor, of=loss: of(*args) * by
            steps.append(engine.step(window(mesh, number)))
        engine.close()
        found.append([(step.applied, step.skip_reason, step.grad_norm) for step in steps])
    assert [applied for applied, _, _ in found[0]] == [True, False, True]
    return found[0] == found[1]


def of_steps(mesh: Mesh, device: torch.device) -> dict[str, Any]:
    """What loading reads, what each micro-batch gathers, what lies there between steps."""
    given, resolved = case(mesh, accumulation=2)
    CountingReader.elements = 0
    options = replace(given.options, shard_base=ALL)
    engine = build_engine(given.source, options, resolved, mesh, device)
    base = base_of(engine)
    read = CountingReader.elements
    engine.step(window(mesh, 0))  # whose first pass finds nothing there
    before = CountingBase.received
    for number in range(2):
        engine.step(window(mesh, number))
    return {
        "elements_read": read,
        "received": (CountingBase.received - before) / 4,
        "shares": base.held_bytes(),
        "rooms": base.room_bytes(),
        "block": base.blocks[0].size,
        "vocabulary": base.embedding.size,
        "whole": sum(unit.size for unit in (base.embedding, base.head, *base.blocks)),
        "parameters": sum(p.untyped_storage().nbytes() for p in alone(engine)),
    }


def alone(engine: Engine) -> Iterator[torch.nn.Parameter]:
    """The frozen parameters that lie in no room."""
    held = {room.buffer.data_ptr() for room in base_of(engine)._held.values()}
    for parameter in engine.model.parameters():
        if not parameter.requires_grad and parameter.untyped_storage().data_ptr() not in held:
            yield parameter


def base_of(engine: Engine) -> ShardedBase:
    run_block: Any = engine.model.run_block
    assert isinstance(run_block, RunSharded)
    return run_block._base


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor_parallel", type=int, default=1)
    parser.add_argument("--shard_base", default=ALL)
    parser.add_argument("--only", help="one of the cases; default: all")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    ranks = Ranks.launched(launched_world_size())
    count = sharers(given.shard_base, given.tensor_parallel, ranks)
    mesh = create_mesh(given.tensor_parallel, base_sharers=count)
    assembly.ShardedBase = CountingBase  # type: ignore[misc]
    cases = [given.only] if given.only else list(CASES)
    found = {name: is_equal(*case(mesh, **CASES[name]), mesh, device) for name in cases}
    with patch("llama.commands.verify.command.build_engine", adding_up):
        for name in filter(ADDED_UP.__contains__, cases):
            found[added_up(name)] = is_equal(*case(mesh, **CASES[name]), mesh, device)
    found[NOT_A_NUMBER] = is_skipped_alike(mesh, device)
    result = {"equal": found, "steps": of_steps(mesh, device)}
    given.out.with_suffix(f".{mesh.rank}").write_text(json.dumps(result))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
