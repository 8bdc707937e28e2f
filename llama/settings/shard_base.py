"""Whether a sharded base goes with what else was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.settings.commands import BenchmarkOptions, PlanOptions, TrainOptions, VerifyOptions
from llama.settings.deepspeed_json.check import zero_stage


def check_shard_base(
    options: TrainOptions | BenchmarkOptions | VerifyOptions | PlanOptions,
    config: dict[str, Any],
    file: Path,
) -> list[str]:
    """Every problem of `--shard_base` with the DeepSpeed JSON `config` of `file`. On one
    data-parallel rank it is none, and has no effect."""
    if not options.shard_base:
        return []
    if options.method != "lora":
        return [
            f"--shard_base: shares out what is frozen, and with --method {options.method} nothing "
            "is; ZeRO-3 shares out what trains (--deepspeed full_zero3)"
        ]
    if zero_stage(config, default=0) == 3:
        return [
            f"--shard_base: zero_optimization.stage is 3 in {file}, which cuts up the base too: "
            "for adapters write stage 1, under which the base is gathered ahead of need; keep "
            "stage 3, without --shard_base, where host memory is to hold the base (offload_param)"
        ]
    return []
