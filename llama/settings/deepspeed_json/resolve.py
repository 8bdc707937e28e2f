"""A checked DeepSpeed JSON made definite for one run: what deepspeed.initialize is given."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from llama.errors import UserError
from llama.settings.deepspeed_json import keys
from llama.settings.deepspeed_json.check import batch_sizes, get

Precision = Literal["fp16", "bf16", "fp32"]

WARMUP_SHARE = 0.03
FIRST_HALF_SHARE = 0.3
LEARNING_RATE_WIDTH = 1.7
"""Times 1 / width: the rate for adapters falls with the width of the model, as practice and
width-scaling arguments agree (Yang et al., "Tensor Programs V", 2022). 7B gets 4.2e-4."""
LARGEST_AUTO_RATE = 5e-3


@dataclass(frozen=True)
class Resolved:
    """The DeepSpeed settings of one run."""

    engine: dict[str, Any]
    """For `deepspeed.initialize`: nothing left to "auto", to the device or to other keys."""
    precision: Precision
    zero_stage: int
    micro_batch: int
    """Rows of one micro-batch on one data-parallel rank."""
    accumulation: int
    """Micro-batches of one optimizer step."""
    gradient_clipping: float
    """Largest norm of the gradient; 0 is off."""
    notes: list[str]
    """Lines for the log and run.json: what differs from the file, and why."""


def resolve(
    config: dict[str, Any],
    *,
    data_parallel: int,
    total_steps: int,
    width: int,
    fp16_supported: bool,
    bf16_supported: bool = True,
) -> Resolved:
    """Make `config`, in which `check` found nothing, definite for `total_steps` optimizer steps on
    `data_parallel` ranks whose devices support these types, and a model `width` wide. Raises
    `UserError` where the batch sizes disagree or the device has no half precision at all."""
    engine, notes = copy.deepcopy(config), []
    micro_batch, accumulation = batch_sizes(config, data_parallel)
    sizes = (micro_batch * accumulation * data_parallel, micro_batch, accumulation)
    engine.update(zip(keys.BATCH, sizes, strict=True))
    precision = _resolve_precision(engine, fp16_supported, bf16_supported, notes)
    zero = engine.setdefault("zero_optimization", {"stage": 0})
    if zero["stage"] == 3:  # else it would replace torch's own linear, for the whole process
        zero["memory_efficient_linear"] = False
    _resolve_optimizer(engine["optimizer"], width, notes)
    if "scheduler" in engine:
        rate = engine["optimizer"]["params"]["lr"]
        _resolve_scheduler(engine["scheduler"], rate, total_steps, notes)
    return Resolved(
        engine=engine,
        precision=precision,
        zero_stage=zero["stage"],
        micro_batch=micro_batch,
        accumulation=accumulation,
        gradient_clipping=float(engine["gradient_clipping"]),
        notes=notes,
    )


def _resolve_precision(
    engine: dict[str, Any], fp16_supported: bool, bf16_supported: bool, notes: list[str]
) -> Precision:
    wants_fp16, wants_bf16 = (get(engine, f"{name}.enabled", False) for name in ("fp16", "bf16"))
    if not (wants_fp16 or wants_bf16):
        return "fp32"
    if wants_fp16 and fp16_supported:
        return "fp16"
    if not bf16_supported:
        other = "fp16, as ds_configs/lora.json does" if fp16_supported else "neither fp16 nor bf16"
        raise UserError(f"bf16 is not supported on this device: enable {other}")
    if wants_fp16:
        del engine["fp16"]
        engine["bf16"] = {**engine.get("bf16", {}), "enabled": True}
        notes.append("fp16 is not supported on this device: running in bf16, with no loss scale")
    return "bf16"


def _resolve_optimizer(optimizer: dict[str, Any], width: int, notes: list[str]) -> None:
    params = optimizer["params"]
    if params["lr"] == "auto":
        params["lr"] = float(f"{min(LEARNING_RATE_WIDTH / width, LARGEST_AUTO_RATE):.3g}")
        notes.append(
            f'optimizer.params.lr "auto" is {params["lr"]:g}: {LEARNING_RATE_WIDTH} / the width of '
            f"the model, {width}, and at most {LARGEST_AUTO_RATE:g}"
        )
    if "torch_adam" not in optimizer["params"]:
        optimizer["params"]["torch_adam"] = True
        notes.append(
            f"optimizer {optimizer['type']}: torch's own (torch_adam true), so that no kernel is "
            "compiled when the run starts"
        )


def _resolve_scheduler(
    scheduler: dict[str, Any], rate: float, total_steps: int, notes: list[str]
) -> None:
    """Fill in each "auto". For the rates DeepSpeed's default, 0.001 whatever the optimizer's, is
    never left to apply."""
    params = scheduler["params"]

    def fill(name: str, value: float) -> None:
        if params.get(name) == "auto":
            params[name] = value

    if scheduler["type"] == "OneCycle":
        params.setdefault("cycle_max_lr", rate)
        fill("cycle_max_lr", rate)
        fill("cycle_first_step_size", max(1, round(FIRST_HALF_SHARE * total_steps)))
        fill("cycle_second_step_size", max(0, total_steps - params["cycle_first_step_size"]))
        return
    fill("total_num_steps", total_steps)
    fill("warmup_num_steps", max(1, round(WARMUP_SHARE * total_steps)))
    if scheduler["type"] != "WarmupCosineLR":
        params.setdefault("warmup_max_lr", rate)
        fill("warmup_max_lr", rate)
        fill("warmup_min_lr", rate / max(2, params["warmup_num_steps"]))
    for name in ("total_num_steps", "warmup_num_steps"):
        written = params.get(name, 0)
        if written > total_steps or (name == "total_num_steps" and 0 < written < total_steps):
            notes.append(f"scheduler.params.{name} is {written}; this run has {total_steps} steps")
    if not params.get("warmup_min_lr"):
        notes.append(
            f"{scheduler['type']} starts at learning rate 0: its first steps change nothing"
        )
