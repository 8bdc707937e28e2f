"""How often ZeRO-3 gathers the model in a step, by DeepSpeed's windows: a weight that is used again
within them stays gathered in between. docs/scaling.md has the table.

torchrun --nproc_per_node 2 -m tests.parity.zero3_windows
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from llama.adapters.match import parameter_count
from llama.assembly.engine import build_engine
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import LoRAOptions, VerifyOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.nonfinite_steps import window
from tests.parity.topologies import document
from tests.parity.zero3_gathers import BLOCK, CONFIG
from tests.support.tiny_runs import resolved_json

GATHER = "_PartitionedParameterCoordinator__all_gather_params"
LORA = LoRAOptions(rank=2, alpha=4.0, dropout=0.0, targets=("wq", "wv"))
WARM_UP, STEPS = 2, 2


def gathers(checkpointing: str, reuse: int, mesh: Mesh, device: torch.device) -> float:
    """Elements gathered in a step, over those of the model and the adapter, where a weight stays
    that is used again within `reuse` blocks."""
    config = document(3, 1)
    config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": BLOCK // 4,
        "stage3_max_live_parameters": 2 * BLOCK,
        "stage3_max_reuse_distance": reuse * BLOCK,
    }
    resolved = resolved_json(config, mesh.data_parallel_size, CONFIG)
    options = VerifyOptions(deepspeed=Path("settings"), lora=LORA, checkpointing=checkpointing)
    source = ModelSource("tiny", RandomReader(CONFIG, 0), None)
    engine = build_engine(source, options, resolved, mesh, device)
    original, elements = getattr(PartitionedParameterCoordinator, GATHER), 0

    def counted(self: Any, parameters: Any, forward: bool) -> Any:
        nonlocal elements
        absent = [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        elements += sum(p.ds_numel for p in absent)
        return original(self, parameters, forward)

    for number in range(WARM_UP):
        engine.step(window(mesh, number))
    with patch.object(PartitionedParameterCoordinator, GATHER, counted):
        for number in range(STEPS):
            engine.step(window(mesh, number))
    engine.close()
    adapter = parameter_count(CONFIG, LORA)
    micro_batches = len(window(mesh, 0))
    return elements / STEPS / micro_batches / (CONFIG.parameter_count() + adapter)


def main() -> None:
    device = start_processes()
    mesh = create_mesh(1)
    lines = ["| checkpointing | reuse, in blocks | gathers of the model |", "|---|---|---|"]
    for checkpointing, reuse in product(("block", "none"), (1, 3, 100)):
        times = gathers(checkpointing, reuse, mesh, device)
        lines.append(f"| {checkpointing} | {reuse} | {times:.2f} |")
    if mesh.is_main:
        print("\n".join(lines))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
