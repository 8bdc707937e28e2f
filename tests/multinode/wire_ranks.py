"""The ranks of `wire`: `torchrun ... -m tests.multinode.wire_ranks NAME --out FILE`, by the name of
what is measured (`MEASURES`).

Starting processes is most of the time, so all measures of one topology share them. A step is
`Engine.step`: beyond it the loop of `train` communicates only to evaluate and to save.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from llama.model.config import ModelConfig
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import LoRAOptions, VerifyOptions, base_sharers
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
    SHARED_LORA,
    SHARED_MODEL,
    SHARINGS,
    TARGETS,
    TOKENS,
    Case,
    Layer,
    Shared,
)
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json

WARM_UP, STEPS = 2, 6


@dataclass(frozen=True)
class Step:
    """The mean of some steps."""

    sent: float
    """Bytes that leave this rank's host."""
    seconds: float


def cases(device: torch.device) -> list[tuple[Case, Step]]:
    mesh = create_mesh(1)
    return [(case, case_step(case, mesh, device)) for case in CASES]


def layers(device: torch.device) -> list[tuple[Layer, Step]]:
    mesh = create_mesh(2)
    return [(layer, layer_step(layer, mesh, device)) for layer in LAYERS]


def sharings(device: torch.device) -> list[tuple[Shared, Step]]:
    """Each over groups of its own."""
    found = []
    for shared in SHARINGS:
        options = VerifyOptions(
            deepspeed=Path("settings"), lora=SHARED_LORA, shard_base=shared.shard_base
        )
        mesh = create_mesh(1, base_sharers=base_sharers(options, dist.get_world_size()))
        document = settings(1, 1) | {"bf16": {"enabled": True}}
        found.append((shared, _step(document, options, SHARED_MODEL, 16, mesh, device)))
    return found


MEASURES: dict[str, Callable[[torch.device], Sequence[tuple[Case | Layer | Shared, Step]]]] = {
    "data": cases,
    "tensor": layers,
    "shared": sharings,
}


def case_step(case: Case, mesh: Mesh, device: torch.device) -> Step:
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
    return _step(document, options, MODEL, 16, mesh, device)


def layer_step(layer: Layer, mesh: Mesh, device: torch.device) -> Step:
    """Of one block, by the difference between two depths."""
    lora = LoRAOptions(LAYER_RANK)
    options = VerifyOptions(
        deepspeed=Path("settings"),
        lora=lora,
        checkpointing=layer.checkpointing,
        tensor_parallel=mesh.tensor_parallel.size,
    )
    few, many = (
        _step(settings(1, 1), options, MODEL.with_layers(depth), TOKENS, mesh, device)
        for depth in DEPTHS
    )
    more = DEPTHS[1] - DEPTHS[0]
    return Step((many.sent - few.sent) / more, (many.seconds - few.seconds) / more)


def _step(
    document: dict[str, Any],
    options: VerifyOptions,
    model: ModelConfig,
    tokens: int,
    mesh: Mesh,
    device: torch.device,
) -> Step:
    source = ModelSource("tiny", RandomReader(model), None)
    resolved = resolved_json(document, mesh.data_parallel_size, model)
    ids = [5 + i % 90 for i in range(tokens)]
    row = Example(ids, ids, row=1)
    window = [make_batch([[row]], stream=i) for i in range(resolved.accumulation)]
    engine = build_engine(source, options, resolved, mesh, device)
    for _ in range(WARM_UP):
        engine.step(window)
    before, started = _settled(), time.perf_counter()
    for _ in range(STEPS):
        engine.step(window)
    seconds = time.perf_counter() - started
    sent = _settled() - before
    engine.close()
    return Step(sent / STEPS, seconds / STEPS)


def _settled() -> int:
    """Bytes sent so far, once all that was on its way has arrived and been acknowledged."""
    dist.barrier()
    time.sleep(0.5)
    return sent_from("self")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    device = start_processes()
    result = []
    for what, own in MEASURES[asked.measure](device):
        of_ranks: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(of_ranks, round(own.sent))
        of_hosts = of_ranks[:: len(of_ranks) // 2]
        result.append({**asdict(what), "sent": of_hosts, "seconds": own.seconds})
    if dist.get_rank() == 0:
        asked.out.write_text(json.dumps(result))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
