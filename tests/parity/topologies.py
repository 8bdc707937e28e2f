"""Many cases on one topology, against one process each: what `topology_table` is made of.

    torchrun --nproc_per_node 4 -m tests.parity.topologies --tensor_parallel 2 --out FILE

A process group lives as long as its process, and starting it is most of the time; so all cases of
a topology share one.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llama.commands.verify.command import Case, asked_run, random_rows, reference_run
from llama.commands.verify.report import TOLERANCES, Outcome, compare
from llama.engine import start_processes
from llama.launch.processes import launched_world_size, stop_processes
from llama.launch.program import run_program
from llama.methods.kinds import method_of
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import LoRAOptions, VerifyOptions
from llama.settings.sharing import ALL, WHOLE, Ranks, sharers
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json

STAGES = (0, 1, 2, 3)
ACCUMULATIONS = (1, 3)
CHECKPOINTING = ("none", "ffn", "block")
MODEL = replace(TINY, attention_bias=True, mlp_bias=True)
OPTIONS = VerifyOptions(
    deepspeed=Path("settings"),
    seq_len=48,
    lora=LoRAOptions(rank=4, alpha=8.0, dropout=0.05, targets=LINEARS),
)
"""Every target, five steps, dropout on."""
FULL = replace(OPTIONS, method="full", lora=LoRAOptions())
FULL_MODEL = replace(MODEL, vocab_size=97, tied_embedding=True)
"""A vocabulary that no degree divides, in a matrix that is met twice."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    tensor_parallel: int
    sequence_parallel: int
    data_parallel: int
    zero_stage: int
    shard_base: bool
    accumulation: int
    checkpointing: str
    loss: float
    grad_norm: float
    adapter: float
    distance: float
    replicas_equal: bool
    optimizer_bytes: list[int]
    bytes_per_parameter: float


def document(stage: int, accumulation: int) -> dict[str, Any]:
    """Float32; under ZeRO-3 everything is cut up, however small."""
    result = settings(stage, accumulation)
    if stage == 3:
        zero = result["zero_optimization"]
        zero.update(stage3_param_persistence_threshold=0, stage3_max_reuse_distance=1)
        zero.update(stage3_max_live_parameters=1, stage3_prefetch_bucket_size=1)
    return result


def case_of(mesh: Mesh, accumulation: int, checkpointing: str, method: str = "lora") -> Case:
    given, model = (FULL, FULL_MODEL) if method == "full" else (OPTIONS, MODEL)
    options = replace(given, tensor_parallel=mesh.tensor_parallel.size, checkpointing=checkpointing)
    source = ModelSource("tiny", RandomReader(model, options.seed), None)
    rows = random_rows(model.vocab_size, options, accumulation, mesh)
    return Case(source, options, rows, micro_batch=1, accumulation=accumulation)


def row(stage: int, case: Case, reference: Outcome | None, mesh: Mesh, device: torch.device) -> Row:
    config = document(stage, case.accumulation)
    resolved = resolved_json(config, mesh.readers, case.source.config)
    outcome = asked_run(case, resolved, mesh, device)
    rows = {line.what: line for line in compare(outcome, reference, resolved, mesh).rows}
    trained = f"updated {method_of(case.options, case.source).TRAINED}"
    compared = ("loss", "gradient norm", trained, "distance moved")
    deviations = [rows[what].deviation for what in compared]
    return Row(
        mesh.tensor_parallel.size,
        mesh.sequence_parallel.size,
        mesh.readers,
        stage,
        outcome.base_sharers > 1,
        case.accumulation,
        case.options.checkpointing,
        *deviations,
        replicas_equal=not outcome.replica_problems,
        optimizer_bytes=outcome.optimizer_bytes,
        bytes_per_parameter=_bytes_per_parameter(outcome, stage, case, mesh),
    )


def _bytes_per_parameter(outcome: Outcome, stage: int, case: Case, mesh: Mesh) -> float:
    """Over one copy: ZeRO parts the states of a shard over the data-parallel ranks, ZeRO-0 repeats
    them on each. A tensor that tensor parallelism replicates counts on each rank that holds it."""
    degree = mesh.tensor_parallel.size
    held = sum(outcome.optimizer_bytes) / (mesh.data_parallel_size if stage == 0 else 1)
    if case.options.method == "full":
        with torch.device("meta"):
            model = Transformer(FULL_MODEL, mesh.tensor_parallel)
        return held / (degree * sum(p.numel() for p in model.parameters()))
    rank, parameters = OPTIONS.lora.rank, 0
    for name in OPTIONS.lora.targets:
        rows, columns = MODEL.linear_shape(name)
        is_column = name not in ("wo", "w2")
        sharded, replicated = (rows, columns) if is_column else (columns, rows)
        parameters += MODEL.n_layers * rank * (sharded + degree * replicated)
    return held / parameters


def rows_of(
    mesh: Mesh,
    device: torch.device,
    stages: tuple[int, ...] = STAGES,
    checkpointing: tuple[str, ...] = CHECKPOINTING,
    method: str = "lora",
) -> list[Row]:
    found = []
    for accumulation in ACCUMULATIONS:
        case = case_of(mesh, accumulation, "none", method)
        reference = reference_run(case, document(0, accumulation), mesh, device)
        ways = [(stage, WHOLE) for stage in stages] + sharded_ways(mesh, stages, method)
        for (stage, word), mode in itertools.product(ways, checkpointing):
            of_mode = case_of(mesh, accumulation, mode, method)
            options = replace(of_mode.options, shard_base=word)
            found.append(row(stage, replace(of_mode, options=options), reference, mesh, device))
    return found


def sharded_ways(mesh: Mesh, stages: Iterable[int], method: str) -> list[tuple[int, str]]:
    """Stages under which a frozen base can be cut over data-parallel ranks."""
    has_any = method == "lora" and mesh.data_parallel_size > 1
    return [(stage, ALL) for stage in stages if has_any and stage < 3]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor_parallel", type=int, required=True)
    parser.add_argument("--sequence_parallel", type=int, default=1)
    parser.add_argument("--checkpointing", default=",".join(CHECKPOINTING))
    parser.add_argument("--method", default="lora")
    parser.add_argument("--out", type=Path, help="a file; default: standard output")
    given = parser.parse_args()
    device = start_processes()
    ranks = Ranks.launched(launched_world_size())
    together = sharers(ALL, given.tensor_parallel, ranks)
    mesh = create_mesh(given.tensor_parallel, given.sequence_parallel, together)
    modes = tuple(given.checkpointing.split(","))
    rows = rows_of(mesh, device, checkpointing=modes, method=given.method)
    if mesh.is_main and given.out:
        given.out.write_text(json.dumps([asdict(r) for r in rows]))
    elif mesh.is_main:
        print(json.dumps({"limits": vars(TOLERANCES["fp32"]), "cases": [asdict(r) for r in rows]}))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
