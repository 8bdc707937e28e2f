"""DeepSpeed JSONs in the forms that the recipes of other trainers have: the keys they write, the
order, what they leave to "auto", write out though it is off, or leave out."""

from __future__ import annotations

from typing import Any

AUTO = "auto"
BATCH = {
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "gradient_accumulation_steps": AUTO,
}
FP16: dict[str, Any] = {
    "enabled": AUTO,
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
ADAMW = {
    "type": "AdamW",
    "params": {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO},
}
WARMUP = {"warmup_min_lr": AUTO, "warmup_max_lr": AUTO, "warmup_num_steps": AUTO}
ZERO2 = {
    "stage": 2,
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": AUTO,
    "contiguous_gradients": True,
}
ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": AUTO,
    "stage3_prefetch_bucket_size": AUTO,
    "stage3_param_persistence_threshold": AUTO,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
TO_CPU = {"device": "cpu", "pin_memory": False}

TRAINED: dict[str, dict[str, Any]] = {
    "transformers, ZeRO-2": {
        "fp16": FP16,
        "bf16": {"enabled": AUTO},
        "optimizer": ADAMW,
        "scheduler": {"type": "WarmupLR", "params": WARMUP},
        "zero_optimization": {**ZERO2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "gradient_clipping": AUTO,
        "steps_per_print": 1e5,
        "wall_clock_breakdown": False,
        **BATCH,
    },
    "transformers, ZeRO-3 and a decay": {
        "fp16": FP16,
        "amp": {"enabled": AUTO, "opt_level": AUTO},
        "optimizer": ADAMW,
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"last_batch_iteration": -1, "total_num_steps": AUTO, **WARMUP},
        },
        "zero_optimization": {**ZERO3, "offload_optimizer": TO_CPU, "offload_param": TO_CPU},
        "gradient_clipping": AUTO,
        **BATCH,
    },
    "accelerate": {
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": AUTO,
            "offload_optimizer": {"device": AUTO, "nvme_path": None},
            "offload_param": {"device": AUTO, "nvme_path": None},
            "stage3_gather_16bit_weights_on_model_save": AUTO,
        },
        "gradient_clipping": AUTO,
        "zero_allow_untested_optimizer": True,
        **BATCH,
    },
    "Axolotl, ZeRO-1": {
        "zero_optimization": {"stage": 1, "overlap_comm": True},
        "bf16": {"enabled": True},
        "fp16": {**FP16, "auto_cast": False, "initial_scale_power": 32},
        "gradient_clipping": AUTO,
        "wall_clock_breakdown": False,
        **BATCH,
    },
    "Axolotl, ZeRO-3": {
        "zero_optimization": {
            **ZERO3,
            "sub_group_size": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        },
        "bf16": {
            "enabled": True,
            "auto_cast": False,
            "loss_scale": 0,
            "initial_scale_power": 32,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "optimizer": ADAMW,
        "gradient_clipping": AUTO,
        **BATCH,
    },
    "LLaMA-Factory, ZeRO-0": {
        **BATCH,
        "gradient_clipping": AUTO,
        "zero_allow_untested_optimizer": True,
        "fp16": FP16,
        "bf16": {"enabled": AUTO},
        "zero_optimization": {**ZERO2, "stage": 0, "round_robin_gradients": True},
    },
    "LLaMA-Factory, ZeRO-3 with offload": {
        **BATCH,
        "gradient_clipping": AUTO,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": FP16,
        "bf16": {"enabled": AUTO},
        "zero_optimization": {**ZERO3, "offload_optimizer": TO_CPU, "offload_param": TO_CPU},
    },
    "DeepSpeed's pages": {
        "train_batch_size": 8,
        "steps_per_print": 2000,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
        },
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
        },
        "gradient_clipping": 1.0,
        "prescale_gradients": False,
        "bf16": {"enabled": False},
        "fp16": {**FP16, "enabled": True, "fp16_master_weights_and_grads": False},
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": 1,
            "allgather_partitions": True,
            "reduce_scatter": True,
            "allgather_bucket_size": 50000000,
            "reduce_bucket_size": 50000000,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "cpu_offload": False,
        },
    },
    "everything written out, and off": {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": "AdamW",
            "legacy_fusion": False,
            "params": {"lr": 1e-3, "betas": None, "amsgrad": False, "bias_correction": True},
        },
        "scheduler": None,
        "fp16": {},
        "bf16": {"enabled": False, "check_grad_overflow": False},
        "timers": {"throughput": {"enabled": False}},
        "amp": {"enabled": False, "opt_level": "O1"},
        "torch_autocast": {"enabled": False},
        "communication_data_type": None,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",
        "sparse_gradients": False,
        "sparse_attention": None,
        "activation_checkpointing": {
            "partition_activations": False,
            "cpu_checkpointing": False,
            "contiguous_memory_optimization": False,
            "number_checkpoints": 4,
            "synchronize_checkpoint_boundary": False,
            "profile": False,
        },
        "autotuning": {"enabled": False, "arg_mappings": {}, "metric": "throughput"},
        "elasticity": {"enabled": False, "max_train_batch_size": 2000},
        "curriculum_learning": {"enabled": False, "curriculum_type": "seqlen"},
        "data_efficiency": {"enabled": False, "data_sampling": {"enabled": True}},
        "compression_training": {},
        "hybrid_engine": {"enabled": False},
        "pipeline": None,
        "tensor_parallel": {"autotp_size": 1},
        "checkpoint": {"tag_validation": "Warn", "use_node_local_storage": False},
        "data_types": {"grad_accum_dtype": None},
        "aio": {"block_size": 1048576, "queue_depth": 8},
        "dataloader_drop_last": False,
        "comms_logger": {"enabled": False, "colour": "blue"},
        "flops_profiler": {"enabled": False, "profile_step": 1, "output_file": None},
        "tensorboard": {"enabled": False, "output_path": ""},
        "wandb": {"enabled": False},
        "comet": None,
        "csv_monitor": {"enabled": False},
        "section_of_tomorrow": {"enabled": False},
        "zero_optimization": {
            "stage": 1,
            "offload_optimizer": {"device": "none", "fast_init": False, "ratio": 1.0},
            "offload_param": None,
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "mics_shard_size": -1,
            "legacy_stage1": False,
            "compute_grad_norm": True,
            "load_from_fp32_weights": True,
        },
    },
}
"""These train."""

_SOUND = TRAINED["transformers, ZeRO-2"]
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "on another disk": (
        {
            **_SOUND,
            "zero_optimization": {
                **ZERO3,
                "offload_param": {"device": "nvme", "nvme_path": "/nvme", "buffer_count": 5},
            },
            "aio": {"block_size": 262144, "single_submit": False},
        },
        ("zero_optimization.offload_param.device: expected one of none, cpu",),
    ),
    "another optimizer": (
        {**_SOUND, "optimizer": {"type": "OneBitAdam", "params": {"lr": AUTO, "freeze_step": 400}}},
        ("optimizer.type: expected one of AdamW, Adam", "optimizer.params.freeze_step: unknown"),
    ),
    "activations cut up": (
        {**_SOUND, "activation_checkpointing": {"partition_activations": True}},
        ("activation_checkpointing: use the option --checkpointing",),
    ),
    "features that are on": (
        {
            **_SOUND,
            "amp": {"enabled": True},
            "elasticity": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "tensor_parallel": {"autotp_size": 2},
            "managed_gradient_accumulation": False,
        },
        ("amp: ", "elasticity: ", "data_types: ", "tensor_parallel: ", "managed_gradient_acc"),
    ),
    "ZeRO++": (
        {
            **_SOUND,
            "zero_optimization": {
                **ZERO3,
                "zero_quantized_weights": True,
                "zero_hpz_partition_size": 8,
            },
        },
        (
            "zero_optimization.zero_quantized_weights: ZeRO++",
            "zero_optimization.zero_hpz_partition_size: ZeRO++",
        ),
    ),
    '"auto" where nothing follows': (
        {
            **_SOUND,
            "steps_per_print": AUTO,
            "zero_optimization": {**ZERO2, "overlap_comm": AUTO, "allgather_bucket_size": AUTO},
        },
        (
            "steps_per_print: expected a whole number",
            "zero_optimization.overlap_comm: expected true or false, found",
            "zero_optimization.allgather_bucket_size: expected an even number",
        ),
    ),
}
"""These are refused, each with these lines and no others."""
