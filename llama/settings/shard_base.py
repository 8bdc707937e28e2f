"""Whether a sharded base goes with what else was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.settings.commands import BenchmarkOptions, PlanOptions, TrainOptions, VerifyOptions
from llama.settings.deepspeed_json.check import zero_stage
from llama.settings.sharing import WHOLE, Ranks, sharers


def check_shard_base(
    options: TrainOptions | BenchmarkOptions | VerifyOptions | PlanOptions,
    config: dict[str, Any],
    file: Path | None,
    ranks: Ranks,
) -> list[str]:
    """Every problem of `--shard_base` on `ranks` with the DeepSpeed JSON `config` of `file`. On one
    data-parallel rank it is none, and has no effect."""
    if options.shard_base == WHOLE:
        return []
    if options.method != "lora":
        return [
            f"--shard_base: shares out what is frozen, and with --method {options.method} nothing "
            "is; ZeRO-3 shares out what trains (--deepspeed full_zero3)"
        ]
    problems = []
    if zero_stage(config, default=0) == 3:
        problems.append(
            f"--shard_base: zero_optimization.stage is 3 in {file}, which cuts up the base too: "
            "for adapters write stage 1, under which the base is gathered ahead of need; keep "
            "stage 3, without --shard_base, where host memory is to hold the base (offload_param)"
        )
    degree = options.tensor_parallel
    if degree >= 1 and ranks.count % degree == 0:  # else that is what is wrong, and said elsewhere
        try:
            sharers(options.shard_base, degree, ranks)
        except ValueError as error:
            problems.append(f"--shard_base: {error}")
    return problems


def base_sharers(options: BenchmarkOptions | TrainOptions | VerifyOptions, world_size: int) -> int:
    """How many data-parallel ranks are to hold one base together, by options that were found right
    on the `world_size` ranks that were launched."""
    return sharers(options.shard_base, options.tensor_parallel, Ranks.launched(world_size))
