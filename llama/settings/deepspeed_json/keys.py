"""The keys of a DeepSpeed JSON that are supported, what each takes, and why the others are not.

Written against DeepSpeed 0.19.8 (`deepspeed/runtime/config.py`, `zero/config.py`,
`precision_config.py`, `lr_schedules.py`, `monitor/config.py`, `comm/config.py`), which itself
ignores an unknown top-level key and takes a negative learning rate or clip without a word.
"""

from __future__ import annotations

from llama.settings.deepspeed_json.kinds import (
    BETAS,
    BOOL,
    COUNT,
    ELEMENTS,
    ELEMENTS_OR_NONE,
    EVEN_ELEMENTS,
    NAMES,
    NOT_NEGATIVE,
    NOT_NEGATIVE_COUNT,
    POSITIVE,
    SHARE,
    TEXT,
    TRUE,
    Kind,
    Refused,
    Table,
    Unused,
    choice,
    integer,
)

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

OPTIMIZERS = ("AdamW", "Adam")
OPTIMIZER_PARAMS: Table = {
    "lr": POSITIVE,
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
    "amsgrad": Refused("not supported"),
    "bias_correction": Refused("Adam without it is not supported", idle=(True,)),
}

_LAST: Table = {
    "last_batch_iteration": Refused("a run goes on from its own checkpoint", idle=(-1,))
}
_WARMUP: Table = {
    **_LAST,
    "warmup_num_steps": COUNT,
    "warmup_type": choice("linear", "log"),
}
_WARMUP_LR: Table = {
    "warmup_min_lr": NOT_NEGATIVE,
    "warmup_max_lr": POSITIVE,
    **_WARMUP,
}
_TOTAL: Table = {"total_num_steps": COUNT}
SCHEDULERS: dict[str, Table] = {
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {**_TOTAL, **_WARMUP_LR},
    "WarmupCosineLR": {**_TOTAL, "warmup_min_ratio": SHARE, **_WARMUP, "cos_min_ratio": SHARE},
    "OneCycle": {
        "cycle_min_lr": NOT_NEGATIVE,
        "cycle_max_lr": POSITIVE,
        "cycle_first_step_size": COUNT,
        "cycle_second_step_size": NOT_NEGATIVE_COUNT,
        "cycle_first_stair_count": NOT_NEGATIVE_COUNT,
        "cycle_second_stair_count": NOT_NEGATIVE_COUNT,
        "decay_step_size": NOT_NEGATIVE_COUNT,
        "decay_lr_rate": NOT_NEGATIVE,
        "cycle_momentum": BOOL,
        "cycle_min_mom": SHARE,
        "cycle_max_mom": SHARE,
        "decay_mom_rate": NOT_NEGATIVE,
        **_LAST,
    },
}
SCHEDULER_REQUIRED = {
    "WarmupLR": ("warmup_num_steps",),
    "WarmupDecayLR": ("total_num_steps", "warmup_num_steps"),
    "WarmupCosineLR": ("total_num_steps", "warmup_num_steps"),
    "OneCycle": ("cycle_min_lr", "cycle_first_step_size"),
}
"""Written always: DeepSpeed's defaults are lengths of 1000 and 2000 steps, whatever the run's."""

_REMOVED = Refused("no longer in DeepSpeed")
_UNSUPPORTED = Refused("not supported")
_MASTERS = Refused("the optimizer keeps float32 masters of the trained tensors")
_ONLY_NVME = Unused("it is of nvme alone")
_OFFLOAD: Table = {
    "device": choice("none", "cpu"),
    "pin_memory": BOOL,
    **dict.fromkeys(("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"), _ONLY_NVME),
    **dict.fromkeys(("pipeline", "pipeline_read", "pipeline_write", "fast_init"), _ONLY_NVME),
    "ratio": Refused("states are offloaded whole", idle=(1,)),
    "super_offload": Refused("not supported"),
    "cpuadam_cores_perc": Unused("it is of super_offload alone"),
}
_OWN_CHECKPOINTS = Unused("checkpoints are the trainer's own, and whole")
_PLUS_PLUS = Refused("ZeRO++ is not supported")
_ZERO_REMOVED = Refused("no longer in DeepSpeed", idle=(-1,))
_ZERO: Table = {
    "stage": integer(0, 3),
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
    "sub_group_size": ELEMENTS_OR_NONE,
    "stage3_prefetch_bucket_size": ELEMENTS_OR_NONE,
    "stage3_param_persistence_threshold": ELEMENTS_OR_NONE,
    "stage3_model_persistence_threshold": ELEMENTS_OR_NONE,
    "stage3_max_live_parameters": ELEMENTS_OR_NONE,
    "stage3_max_reuse_distance": ELEMENTS_OR_NONE,
    "stage3_module_granularity_threshold": NOT_NEGATIVE_COUNT,
    "compute_grad_norm": Refused(
        "the norm is always computed: it is logged, and clipped by", idle=(True,)
    ),
    "cpu_offload": Refused("write offload_optimizer"),
    "cpu_offload_param": Refused("write offload_param"),
    "cpu_offload_use_pin_memory": Refused("write pin_memory in the section that offloads"),
    "stage3_gather_16bit_weights_on_model_save": _OWN_CHECKPOINTS,
    "stage3_gather_fp16_weights_on_model_save": _OWN_CHECKPOINTS,
    "load_from_fp32_weights": _OWN_CHECKPOINTS,
    "elastic_checkpoint": _OWN_CHECKPOINTS,
    "pipeline_loading_checkpoint": _OWN_CHECKPOINTS,
    "memory_efficient_linear": Unused("the model's linear layers are its own"),
    "legacy_stage1": _REMOVED,
    **dict.fromkeys(("mics_shard_size", "zeropp_loco_param"), _ZERO_REMOVED),
    "mics_hierarchical_params_gather": _ZERO_REMOVED,
    "zero_quantized_weights": _PLUS_PLUS,
    "zero_quantized_nontrainable_weights": _PLUS_PLUS,
    "zero_quantized_gradients": _PLUS_PLUS,
    "zero_hpz_partition_size": Refused("ZeRO++ is not supported", idle=(0, 1)),
    "stage3_use_all_reduce_for_fetch_params": _UNSUPPORTED,
    "stage3_allgather_sequential": _UNSUPPORTED,
    "zenflow": _UNSUPPORTED,
}

_MESH = Refused("would replace the process groups of --tensor_parallel", idle=(0, 1))
_DIVISION = Refused("the loss is already divided by the tokens of the whole step", idle=(1, "mean"))
_DATA = Refused("the order of the data is the trainer's own")
_NO_LOSS_SCALE = Unused("bf16 has no loss scale")
_NO_LEAVE = Unused("the supported optimizers need no such leave")

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
        "legacy_fusion": Unused("torch's own optimizer has none"),
    },
    "scheduler": {
        "type": choice(*SCHEDULERS),
        "params": {name: kind for table in SCHEDULERS.values() for name, kind in table.items()},
    },
    "fp16": {
        "enabled": BOOL,
        "loss_scale": NOT_NEGATIVE,
        "initial_scale_power": integer(0, 32),
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
        "auto_cast": Refused("the model does its own casts"),
        "immediate_grad_update": _UNSUPPORTED,
        **dict.fromkeys(("loss_scale", "initial_scale_power", "hysteresis"), _NO_LOSS_SCALE),
        **dict.fromkeys(("loss_scale_window", "min_loss_scale"), _NO_LOSS_SCALE),
    },
    "zero_optimization": _ZERO,
    "steps_per_print": Kind("a whole number of at least 1", ELEMENTS.accepts),
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
        "module_depth": integer(-1),
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
        "mode": choice("get", "create", "get_or_create"),
        "api_key": Refused("a secret: set COMET_API_KEY (run.json keeps a copy of this file)"),
    },
    "activation_checkpointing": Refused(
        "use the option --checkpointing", idle_keys=("number_checkpoints",)
    ),
    "bfloat16": Refused("write bf16"),
    "tensor_parallel": _MESH,
    "autotp_size": _MESH,
    "expert_parallel": _MESH,
    "sequence_parallel_size": Refused("use the option --sequence_parallel", idle=(0, 1)),
    "pipeline": _MESH,
    "prescale_gradients": _DIVISION,
    "gradient_predivide_factor": _DIVISION,
    "gradient_allreduce_op": _DIVISION,
    "managed_gradient_accumulation": Refused(
        "the trainer says itself where a step ends", idle=(True,)
    ),
    "checkpoint": Refused(
        "checkpoints are the trainer's own, not DeepSpeed's", idle_keys=("tag_validation",)
    ),
    "datastates": Refused("checkpoints are the trainer's own, not DeepSpeed's"),
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "zero_allow_untested_optimizer": _NO_LEAVE,
    "zero_force_ds_cpu_optimizer": _NO_LEAVE,
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
    "aio": Unused("it is of nvme alone"),
    "communication_data_type": _UNSUPPORTED,
    "data_types": _UNSUPPORTED,
    "disable_allgather": _UNSUPPORTED,
    "use_data_before_expert_parallelism": _UNSUPPORTED,
    "timers": Unused("the trainer takes its own times"),
    "log_level": Unused("DeepSpeed's warnings alone are shown"),
    "disable_python_gc": _UNSUPPORTED,
    "graph_harvesting": _UNSUPPORTED,
    "vocabulary_size": Unused("the model says it"),
    "seq_parallel_communication_data_type": _UNSUPPORTED,
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
