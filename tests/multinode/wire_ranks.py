"""The ranks of `wire`: `torchrun ... -m tests.multinode.wire_ranks --tensor_parallel N --out FILE`.

Starting processes is most of the time, so all measures of one topology share them. A step is
`Engine.step`: beyond it the loop of `train` communicates only to evaluate and to save.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama.assembly.engine import build_engine
from llama.data.batches import make_batch
from llama.data.types import Example
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import LoRAOptions, VerifyOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.multinode.hosts import sent_from
from tests.multinode.wire_cases import (
    BLOCK,
    CASES,
    DEPTHS,
    LAYER_RANK,
    LAYERS,
    MODEL,
    RANK,
    TARGETS,
    TOKENS,
    Case,
    Layer,
)
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json

WARM_UP, STEPS = 2, 6


def case_bytes(case: Case, mesh: Mesh, device: torch.device) -> float:
    """Bytes a step that leave this rank's host."""
    document = settings(case.stage, case.accumulation)
    if case.stage == 3:  # all is cut up, however small; the rest in proportion, as for 7B
        document["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": BLOCK // 2,
            "stage3_max_live_parameters": 5 * BLOCK,
            "stage3_max_reuse_distance": 5 * BLOCK // 2,
        }
    if case.precision != "fp32":
        document[case.precision] = {"enabled": True}
    options = VerifyOptions(deepspeed=Path("settings"), lora=LoRAOptions(RANK, targets=TARGETS))
    return _bytes_per_step(document, options, MODEL.n_layers, 16, mesh, device)


def layer_bytes(layer: Layer, mesh: Mesh, device: torch.device) -> float:
    """The same of one block, by the difference between two depths."""
    lora = LoRAOptions(LAYER_RANK)
    options = VerifyOptions(
        deepspeed=Path("settings"),
        lora=lora,
        checkpointing=layer.checkpointing,
        tensor_parallel=mesh.tensor_parallel.size,
    )
    few, many = (
        _bytes_per_step(settings(1, 1), options, depth, TOKENS, mesh, device) for depth in DEPTHS
    )
    return (many - few) / (DEPTHS[1] - DEPTHS[0])


def _bytes_per_step(
    document: dict[str, Any],
    options: VerifyOptions,
    depth: int,
    tokens: int,
    mesh: Mesh,
    device: torch.device,
) -> float:
    source = ModelSource("tiny", RandomReader(MODEL.with_layers(depth)), None)
    resolved = resolved_json(document, mesh.data_parallel_size, MODEL)
    ids = [5 + i % 90 for i in range(tokens)]
    row = Example(ids, ids, row=1)
    window = [make_batch([[row]], stream=i) for i in range(resolved.accumulation)]
    engine = build_engine(source, options, resolved, mesh, device)
    for _ in range(WARM_UP):
        engine.step(window)
    before = _settled()
    for _ in range(STEPS):
        engine.step(window)
    sent = _settled() - before
    engine.close()
    return sent / STEPS


def _settled() -> int:
    """Bytes sent so far, once all that was on its way has arrived and been acknowledged."""
    dist.barrier()
    time.sleep(0.5)
    return sent_from("self")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor_parallel", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(asked.tensor_parallel)
    measures: list[tuple[Case | Layer, float]] = (
        [(case, case_bytes(case, mesh, device)) for case in CASES]
        if asked.tensor_parallel == 1
        else [(layer, layer_bytes(layer, mesh, device)) for layer in LAYERS]
    )
    result = []
    for what, own in measures:
        of_hosts: list[int] = [0] * mesh.world_size
        dist.all_gather_object(of_hosts, round(own))
        result.append({**asdict(what), "sent": of_hosts})
    if mesh.is_main:
        asked.out.write_text(json.dumps(result))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
