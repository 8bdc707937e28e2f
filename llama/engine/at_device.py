"""The step of DeepSpeed's ZeRO-1 and 2, decided on the device.

DeepSpeed waits for the gradient's norm, sees whether it is finite, and begins the step then: the
device has nothing to do while a host looks and starts it, a few milliseconds of a small model's
fifteen. torch's Adam in one kernel takes a flag that says whether to leave everything as it is, so
that all of the step can be on its way before anything is read. What is computed is DeepSpeed's
(`stage_1_and_2.py`, `step` and `unscale_and_clip_grads` of 0.19.8), to the last digit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import all_gather_dp_groups
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer

from llama.engine.gradients import InOnePiece, norm_on_device

CLIPPED = 1e-6
"""What DeepSpeed adds to the norm that it clips by."""


def decide_at_device(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Have `optimizer`, one of those that `check_all_at_once` has changed, take its steps so where
    their gradients are in one piece and its Adam is fused. Others are DeepSpeed's own."""
    hooks: Any = optimizer
    by_deepspeed = hooks.step

    def step(closure: Any = None) -> None:
        pieces = hooks.averaged_gradients.values()
        decides = hooks.compute_grad_norm and all(isinstance(x, InOnePiece) for x in pieces)
        if decides and all(group.get("fused") for group in hooks.optimizer.param_groups):
            _step(hooks)
        else:
            by_deepspeed(closure)

    hooks.step = step


@torch.no_grad()
def _step(optimizer: Any) -> None:
    optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
    norm, scale = norm_on_device(optimizer), optimizer.loss_scale
    divisor, inner = _divisor(optimizer, norm, scale), optimizer.optimizer
    inner.found_inf = norm.isinf().float()  # as one that is NaN is given too
    try:
        for index in range(len(optimizer.bit16_groups)):
            _step_of_group(optimizer, index, divisor)
    finally:
        del inner.found_inf
    all_gather_dp_groups(
        groups_flat=optimizer.bit16_groups_flat,
        partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
        dp_process_group=optimizer.real_dp_process_group,
        start_alignment_factor=optimizer.nccl_start_alignment_factor,
        allgather_bucket_size=optimizer.allgather_bucket_size,
    )
    for index in range(len(optimizer.bit16_groups)):
        optimizer._update_model_bit16_weights(index)
    found = norm.cpu()  # all that is waited for
    optimizer.overflow = not math.isfinite(found)
    optimizer._update_scale(optimizer.overflow)
    optimizer._global_grad_norm = float("inf") if optimizer.overflow else found / scale


def _divisor(optimizer: Any, norm: torch.Tensor, scale: float) -> torch.Tensor | float:
    """Of gradients that have the loss scale in them: it, and what they are clipped by."""
    if optimizer.clip_grad <= 0.0:
        return scale
    clip = ((norm / scale) + CLIPPED) / optimizer.clip_grad
    return torch.clamp(clip, min=1.0) * scale


def _step_of_group(optimizer: Any, index: int, divisor: torch.Tensor | float) -> None:
    master = optimizer.single_partition_of_fp32_groups[index]
    grad = optimizer._get_preflattened_grad_partition(index).to(master.dtype)
    optimizer.averaged_gradients[index] = optimizer.all_grad_tensors[index] = None
    if isinstance(divisor, torch.Tensor) or divisor != 1.0:
        grad.mul_(1.0 / divisor)
    master.grad = grad
    optimizer._optimizer_step(index)
    master.grad = None
    own = dist.get_rank(group=optimizer.real_dp_process_group[index])
    optimizer.parallel_partitioned_bit16_groups[index][own].data.copy_(master.data)
