"""The loss scale of fp16 through a step."""

from __future__ import annotations

from typing import Any


def keep_scale_through_steps(optimizer: Any) -> None:
    """Have DeepSpeed's `optimizer`, of any stage, divide gradients by the loss scale that is in
    them.

    It sets the next step's scale before it divides by what is then the scale (0.19.8: `step` of
    `fp16/fused_optimizer.py`, `zero/stage_1_and_2.py` and `stage3.py`): of a step after which the
    scale is doubled gradients and their norm are halved. So a scale that grows does so after the
    step; one that falls does at once, as no gradient is used then."""
    if not hasattr(optimizer, "_update_scale"):
        return
    update, by_deepspeed = optimizer._update_scale, optimizer.step
    clean: list[bool] = []

    def postponed(overflow: bool = False) -> None:
        if overflow:
            update(overflow)
        else:
            clean.append(True)

    def step(*args: Any, **kwargs: Any) -> Any:
        clean.clear()
        found = by_deepspeed(*args, **kwargs)
        if clean:
            update(False)
        return found

    optimizer._update_scale, optimizer.step = postponed, step
