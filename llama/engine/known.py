"""What this folder replaces of DeepSpeed, or calls though it is DeepSpeed's own affair: it may
change from one release to the next, and a run that goes on all the same would compute another
thing. So it is looked at before a run starts."""

from __future__ import annotations

import inspect
from typing import Any

import deepspeed
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from llama.errors import UserError

RELEASES = ">=0.19.8,<0.20"
"""Those that were read, as pip takes them; pyproject.toml has the same."""

KNOWN: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (
        DeepSpeedZeroOptimizer,
        "allreduce_and_scatter",
        (
            *("self", "bucket", "communication_data_type", "numel_per_bucket", "log", "divide"),
            "process_group",
        ),
    ),
    (DeepSpeedZeroOptimizer, "check_overflow", ("self", "partition_gradients")),
    (DeepSpeedZeroOptimizer, "get_grad_norm_direct", ("self", "gradients", "params", "norm_type")),
    (DeepSpeedZeroOptimizer, "has_overflow_partitioned_grads_serial", ("self",)),
    (DeepSpeedZeroOptimizer, "_add_to_grad_partition_buffer", ("output", "source")),
    (DeepSpeedZeroOptimizer, "_update_model_bit16_weights", ("self", "group_index")),
    (DeepSpeedZeroOptimizer, "_get_preflattened_grad_partition", ("self", "group_idx")),
    (DeepSpeedZeroOptimizer, "step", ("self", "closure")),
    (DeepSpeedZeroOptimizer, "scaled_global_norm", ("self", "norm_type")),
    (DeepSpeedZeroOptimizer, "_optimizer_step", ("self", "group_no")),
    (DeepSpeedZeroOptimizer, "_update_scale", ("self", "has_overflow")),
    (DeepSpeedZeroOptimizer_Stage3, "_update_scale", ("self", "has_overflow")),
    (FP16_Optimizer, "_update_scale", ("self", "skip")),
    (DeepSpeedZeroOptimizer, "_lazy_init_hp_params_optimizer_state", ("self",)),
)
"""Class, method, and the names of what the method takes."""


def require_known() -> None:
    """Raise `UserError` where the DeepSpeed that is installed is not as `KNOWN` has it."""
    problems = [
        f"{owner.__name__}.{name}({', '.join(expected)}) is {found}"
        for owner, name, expected in KNOWN
        if (found := _differs(owner, name, expected))
    ]
    if problems:
        raise UserError(
            f"deepspeed {deepspeed.__version__} is not one that this program knows: "
            f'{"; ".join(problems)}; install "deepspeed{RELEASES}"'
        )


def _differs(owner: type, name: str, expected: tuple[str, ...]) -> str | None:
    method: Any = getattr(owner, name, None)
    if not callable(method):
        return "not there"
    found = tuple(inspect.signature(method).parameters)
    return None if found == expected else f"({', '.join(found)}) there"
