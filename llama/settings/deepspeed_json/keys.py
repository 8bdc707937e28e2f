"""The keys of a DeepSpeed JSON that are supported, what each takes, and why the others are not.

Written against DeepSpeed 0.19.8 (`deepspeed/runtime/config.py`, `zero/config.py`,
`precision_config.py`, `lr_schedules.py`, `monitor/config.py`, `comm/config.py`), which itself
ignores an unknown top-level key and takes a negative learning rate or clip without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union


@dataclass(frozen=True)
class Kind:
    """The values that a key takes, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Refused:
    """A key that DeepSpeed knows and this trainer does not pass on."""

    reason: str


Table = dict[str, Union[Kind, Refused, "Table"]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(least: int, most: float = math.inf) -> Kind:
    expected = f"an integer of at least {least}"
    if most < math.inf:
        expected = f"an integer from {least} to {most}"
    return Kind(expected, lambda value: _is_integer(value) and least <= value <= most)


def _choice(*choices: str) -> Kind:
    return Kind("one of " + ", ".join(choices), lambda value: value in choices)


def _or_auto(kind: Kind) -> Kind:
    return Kind(f'{kind.expected}, or "auto"', lambda v: v == "auto" or kind.accepts(v))


BOOL = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
POSITIVE = Kind("a finite number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = Kind("a finite number of at least 0", lambda v: _is_number(v) and v >= 0)
SHARE = Kind("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
COUNT = _integer(1)
NOT_NEGATIVE_COUNT = _integer(0)
ELEMENTS = Kind(  # 5e8 is how DeepSpeed's own pages write it
    "a whole number of elements above 0", lambda v: _is_number(v) and v >= 1 and v == int(v)
)
EVEN_ELEMENTS = Kind(
    "an even number of elements above 0", lambda v: ELEMENTS.accepts(v) and v % 2 == 0
)
BETAS = Kind(
    "two numbers from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(b) and 0 <= b < 1 for b in v),
)
NAMES = Kind("a list of text", lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)))
TRUE = Kind("true", lambda value: value is True)

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

OPTIMIZERS = ("AdamW", "Adam")
OPTIMIZER_PARAMS: Table = {
    "lr": _or_auto(POSITIVE),
    "betas": BETAS,
    "eps": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_w_mode": BOOL,
    "torch_adam": Kind(
        "true (else DeepSpeed compiles a kernel of its own when the run starts)", TRUE.accepts
    ),
    "fused": BOOL,
    "foreach": BOOL,
    "max_grad_norm": Refused("write gradient_clipping, at the top"),
}

_WARMUP: Table = {
    "warmup_num_steps": _or_auto(COUNT),
    "warmup_type": _choice("linear", "log"),
}
_WARMUP_LR: Table = {
    "warmup_min_lr": _or_auto(NOT_NEGATIVE),
    "warmup_max_lr": _or_auto(POSITIVE),
    **_WARMUP,
}
_TOTAL: Table = {"total_num_steps": _or_auto(COUNT)}
SCHEDULERS: dict[str, Table] = {
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {**_TOTAL, **_WARMUP_LR},
    "WarmupCosineLR": {**_TOTAL, "warmup_min_ratio": SHARE, **_WARMUP, "cos_min_ratio": SHARE},
    "OneCycle": {
        "cycle_min_lr": NOT_NEGATIVE,
        "cycle_max_lr": _or_auto(POSITIVE),
        "cycle_first_step_size": _or_auto(COUNT),
        "cycle_second_step_size": _or_auto(NOT_NEGATIVE_COUNT),
        "cycle_first_stair_count": NOT_NEGATIVE_COUNT,
        "cycle_second_stair_count": NOT_NEGATIVE_COUNT,
        "decay_step_size": NOT_NEGATIVE_COUNT,
        "decay_lr_rate": NOT_NEGATIVE,
        "cycle_momentum": BOOL,
        "cycle_min_mom": SHARE,
        "cycle_max_mom": SHARE,
        "decay_mom_rate": NOT_NEGATIVE,
    },
}
SCHEDULER_REQUIRED = {
    "WarmupLR": ("warmup_num_steps",),
    "WarmupDecayLR": ("total_num_steps", "warmup_num_steps"),
    "WarmupCosineLR": ("total_num_steps", "warmup_num_steps"),
    "OneCycle": ("cycle_min_lr", "cycle_first_step_size"),
}
"""Written always: DeepSpeed's defaults are lengths of 1000 and 2000 steps, whatever the run's."""

_MASTERS = Refused("the optimizer keeps float32 masters of the trained tensors")
_OFFLOAD: Table = {"device": _choice("none", "cpu"), "pin_memory": BOOL}
_ZERO: Table = {
    "stage": _integer(0, 3),
    "contiguous_gradients": BOOL,
    "reduce_scatter": BOOL,
    "reduce_bucket_size": ELEMENTS,
    "use_multi_rank_bucket_allreduce": BOOL,
    "allgather_partitions": BOOL,
    "allgather_bucket_size": EVEN_ELEMENTS,
    "overlap_comm": BOOL,
    "round_robin_gradients": BOOL,
    "ignore_unused_parameters": BOOL,
    "offload_param": _OFFLOAD,
    "offload_optimizer": _OFFLOAD,
    "sub_group_size": ELEMENTS,
    "stage3_prefetch_bucket_size": ELEMENTS,
    "stage3_param_persistence_threshold": NOT_NEGATIVE_COUNT,
    "stage3_model_persistence_threshold": NOT_NEGATIVE_COUNT,
    "stage3_max_live_parameters": ELEMENTS,
    "stage3_max_reuse_distance": ELEMENTS,
    "stage3_module_granularity_threshold": NOT_NEGATIVE_COUNT,
    "compute_grad_norm": Refused("the norm is always computed: it is logged, and clipped by"),
    "cpu_offload": Refused("write offload_optimizer"),
    "cpu_offload_param": Refused("write offload_param"),
    "stage3_gather_16bit_weights_on_model_save": Refused("checkpoints are not DeepSpeed's"),
    "zero_quantized_weights": Refused("ZeRO++ is not supported"),
    "zero_quantized_gradients": Refused("ZeRO++ is not supported"),
    "zero_hpz_partition_size": Refused("ZeRO++ is not supported"),
}

_CHECKPOINTS = Refused("checkpoints are the trainer's own, not DeepSpeed's")
_MESH = Refused("would replace the process groups of --tensor_parallel")
_DIVISION = Refused("the loss is already divided by the tokens of the whole step")
_REMOVED = Refused("no longer in DeepSpeed")
_DATA = Refused("the order of the data is the trainer's own")
_UNSUPPORTED = Refused("not supported")

KEYS: Table = {
    "train_batch_size": COUNT,
    "train_micro_batch_size_per_gpu": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_clipping": Kind("a finite number of at least 0 (0: off)", NOT_NEGATIVE.accepts),
    "optimizer": {
        "type": Kind(  # of optimizers DeepSpeed does not mind the case, of schedulers it does
            f"one of {', '.join(OPTIMIZERS)}",
            lambda v: isinstance(v, str) and v.lower() in map(str.lower, OPTIMIZERS),
        ),
        "params": OPTIMIZER_PARAMS,
    },
    "scheduler": {
        "type": _choice(*SCHEDULERS),
        "params": {name: kind for table in SCHEDULERS.values() for name, kind in table.items()},
    },
    "fp16": {
        "enabled": BOOL,
        "loss_scale": NOT_NEGATIVE,
        "initial_scale_power": _integer(0, 32),
        "loss_scale_window": COUNT,
        "hysteresis": COUNT,
        "consecutive_hysteresis": BOOL,
        "min_loss_scale": COUNT,
        "auto_cast": Refused("casts token positions too; the model does its own casts"),
        "fp16_master_weights_and_grads": _MASTERS,
    },
    "bf16": {
        "enabled": BOOL,
        "check_grad_overflow": Kind("true (else one NaN reaches every weight)", TRUE.accepts),
        "bf16_master_weights_and_grads": _MASTERS,
        "bf16_optimizer_states": _MASTERS,
    },
    "zero_optimization": _ZERO,
    "steps_per_print": COUNT,
    "wall_clock_breakdown": BOOL,
    "memory_breakdown": BOOL,
    "dump_state": BOOL,
    "comms_logger": {
        "enabled": BOOL,
        "verbose": BOOL,
        "prof_all": BOOL,
        "debug": BOOL,
        "prof_ops": NAMES,
    },
    "flops_profiler": {
        "enabled": BOOL,
        "recompute_fwd_factor": NOT_NEGATIVE,
        "profile_step": COUNT,
        "module_depth": _integer(-1),
        "top_modules": COUNT,
        "detailed": BOOL,
        "output_file": TEXT,
    },
    "tensorboard": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "csv_monitor": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "wandb": {"enabled": BOOL, "group": TEXT, "team": TEXT, "project": TEXT},
    "comet": {
        "enabled": BOOL,
        "samples_log_interval": COUNT,
        "project": TEXT,
        "workspace": TEXT,
        "experiment_name": TEXT,
        "experiment_key": TEXT,
        "online": BOOL,
        "mode": _choice("get", "create", "get_or_create"),
        "api_key": Refused("a secret: set COMET_API_KEY (run.json keeps a copy of this file)"),
    },
    "activation_checkpointing": Refused("use the option --checkpointing"),
    "bfloat16": Refused("write bf16"),
    "tensor_parallel": _MESH,
    "autotp_size": _MESH,
    "expert_parallel": _MESH,
    "sequence_parallel_size": _MESH,
    "pipeline": _MESH,
    "prescale_gradients": _DIVISION,
    "gradient_predivide_factor": _DIVISION,
    "gradient_allreduce_op": _DIVISION,
    "managed_gradient_accumulation": _DIVISION,
    "checkpoint": _CHECKPOINTS,
    "datastates": _CHECKPOINTS,
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "zero_allow_untested_optimizer": Refused("the supported optimizers need no such leave"),
    "zero_force_ds_cpu_optimizer": Refused("the supported optimizers need no such leave"),
    "torch_autocast": Refused("write fp16 or bf16"),
    "amp": Refused("no longer in DeepSpeed; write fp16 or bf16"),
    "elasticity": _REMOVED,
    "compression_training": _REMOVED,
    "curriculum_learning": _REMOVED,
    "sparse_attention": _REMOVED,
    "sparse_gradients": _REMOVED,
    "progressive_layer_drop": _REMOVED,
    "quantize_training": _REMOVED,
    "eigenvalue": _REMOVED,
    "nebula": _REMOVED,
    "autotuning": _UNSUPPORTED,
    "hybrid_engine": _UNSUPPORTED,
    "weight_quantization": _UNSUPPORTED,
    "compile": _UNSUPPORTED,
    "aio": _UNSUPPORTED,
    "communication_data_type": _UNSUPPORTED,
    "data_types": _UNSUPPORTED,
}

MONITOR_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
"""The package that each monitor imports when the engine is made."""


def names(table: Table = KEYS, prefix: str = "") -> list[str]:
    """Every dotted name of the table: sections, keys, and the keys that are refused."""
    found: list[str] = []
    for name, node in table.items():
        found.append(prefix + name)
        if isinstance(node, dict):
            found += names(node, f"{prefix}{name}.")
    return found
