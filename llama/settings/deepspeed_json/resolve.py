"""A checked DeepSpeed JSON made definite for one run: what deepspeed.initialize is given."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, Literal

from llama.errors import UserError, raise_if
from llama.settings.deepspeed_json import auto, keys
from llama.settings.deepspeed_json.auto import AUTO
from llama.settings.deepspeed_json.check import (
    batch_sizes,
    cycles_momentum,
    get,
    is_left_off,
    rate_problems,
    zero_stage,
)
from llama.settings.deepspeed_json.keys import KEYS
from llama.settings.deepspeed_json.kinds import Refused, Table, Unused

Precision = Literal["fp16", "bf16", "fp32"]

LEFT = 0.05
"""A rate that ends below this share of its peak has fallen to zero, as one says."""


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
    filled: tuple[str, ...] = ()
    """Those of them that say what "auto" became."""


def resolve(
    config: dict[str, Any],
    *,
    data_parallel: int,
    total_steps: int,
    width: int,
    fp16_supported: bool,
    bf16_supported: bool = True,
    method: str = "lora",
) -> Resolved:
    """Make `config`, in which `check` found nothing, definite for `total_steps` optimizer steps on
    `data_parallel` ranks whose devices support these types, and a model `width` wide of which
    `method` (a key of `auto.RATES`) says what trains. Raises `UserError` where the batch sizes
    disagree, the device has no half precision at all, or the schedule does not go with a rate that
    was left to "auto"."""
    notes: list[str] = []
    engine = _passed_on(config, KEYS, "", notes)
    micro_batch, accumulation = batch_sizes(config, data_parallel)
    sizes = (micro_batch * accumulation * data_parallel, micro_batch, accumulation)
    precision = _resolve_precision(engine, fp16_supported, bf16_supported, notes)
    _complete_optimizer(engine, notes)
    filled = auto.fill(auto.Facts(sizes, precision, width, total_steps, method, engine))
    raise_if(rate_problems(engine, ' ("auto" for this model)'))
    said = _what_auto_is(filled, width, auto.RATES[method])
    notes += said
    engine.update(zip(keys.BATCH, sizes, strict=True))
    zero = engine.setdefault("zero_optimization", {"stage": 0})
    if zero["stage"] == 3:  # else it would replace torch's own linear, for the whole process
        zero["memory_efficient_linear"] = False
    if "scheduler" in engine:
        said += (falls := _where_the_rate_falls_to(engine, filled, total_steps))
        notes += falls
        _check_schedule(engine["scheduler"], total_steps, notes)
    return Resolved(
        engine=engine,
        precision=precision,
        zero_stage=zero["stage"],
        micro_batch=micro_batch,
        accumulation=accumulation,
        gradient_clipping=float(engine["gradient_clipping"]),
        notes=notes,
        filled=tuple(said),
    )


def _passed_on(
    section: dict[str, Any], table: Table, prefix: str, notes: list[str]
) -> dict[str, Any]:
    """A copy of `section` without the keys that DeepSpeed is not given, each of which is said."""
    kept: dict[str, Any] = {}
    for name, value in section.items():
        node = table.get(name)
        if isinstance(node, Unused):
            notes.append(f"{prefix}{name} has no effect: {node.reason}")
        elif isinstance(node, Refused):
            assert is_left_off(value), "check reports it"
            notes.append(f'{prefix}{name}.enabled "auto" is false: {node.reason}')
        elif isinstance(value, dict) and isinstance(node, dict):
            kept[name] = _passed_on(value, node, f"{prefix}{name}.", notes)
        else:
            kept[name] = copy.deepcopy(value)
    return kept


def _resolve_precision(
    engine: dict[str, Any], fp16_supported: bool, bf16_supported: bool, notes: list[str]
) -> Precision:
    written = [get(engine, f"{name}.enabled", False) for name in ("fp16", "bf16")]
    if AUTO in written and True not in written:
        return _auto_precision(engine, fp16_supported, bf16_supported, notes)
    wants_fp16, wants_bf16 = (value is True for value in written)
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


def _auto_precision(
    engine: dict[str, Any], fp16_supported: bool, bf16_supported: bool, notes: list[str]
) -> Precision:
    """bf16 before fp16, of what the file offers and the device has; else the other one that the
    device has; float32 where it has neither, and under ZeRO-0, which trains in nothing else."""
    offered = [name for name in ("bf16", "fp16") if get(engine, f"{name}.enabled") == AUTO]
    has: dict[str, bool] = {"bf16": bf16_supported, "fp16": fp16_supported}
    found = next((name for name in [*offered, *has] if has[name]), "fp32")
    if zero_stage(engine, default=0) == 0:
        found, why = "fp32", "ZeRO-0 trains in nothing else; for half precision write stage 1"
    else:
        why = "the device has it" if found != "fp32" else "the device has no half precision"
    keys_of_it = ", ".join(f"{name}.enabled" for name in offered)
    notes.append(f'{keys_of_it} "auto": running in {found}: {why}')
    for name in has:
        if name in engine:
            engine[name]["enabled"] = name == found
    if found != "fp32":
        engine.setdefault(found, {"enabled": True})
    return "fp16" if found == "fp16" else "bf16" if found == "bf16" else "fp32"


def _complete_optimizer(engine: dict[str, Any], notes: list[str]) -> None:
    if "optimizer" not in engine:
        params = {name: AUTO for name in ("lr", "betas", "eps", "weight_decay")}
        engine["optimizer"] = {"type": "AdamW", "params": params}
        notes.append('no optimizer is written: AdamW, with "auto" for lr, betas, eps, weight_decay')
    optimizer = engine["optimizer"]
    if cycles_momentum(engine) and optimizer["params"].get("betas") == AUTO:
        del optimizer["params"]["betas"]  # OneCycle sets them
    if "torch_adam" not in optimizer["params"]:
        optimizer["params"]["torch_adam"] = True
        notes.append(
            f"optimizer {optimizer['type']}: torch's own (torch_adam true), so that no kernel is "
            "compiled when the run starts"
        )
    params = get(engine, "scheduler.params")
    if params is not None and engine["scheduler"]["type"] != "WarmupCosineLR":
        # DeepSpeed's own is 0.001, whatever the optimizer's
        cycle = engine["scheduler"]["type"] == "OneCycle"
        params.setdefault("cycle_max_lr" if cycle else "warmup_max_lr", AUTO)


def _what_auto_is(filled: dict[str, Any], width: int, rule: auto.RateRule) -> list[str]:
    """One line for the rate, which is ours to choose, and one for all the others."""
    where, lines = "optimizer.params.lr", list[str]()
    if where in filled:
        lines.append(
            f'{where} "auto" is {filled.pop(where):g}: {rule.times:g} / the width of the '
            f"model, {width}, and at most {rule.largest:g}"
        )
    if filled:
        values = (f"{path} {_short(value)}" for path, value in filled.items())
        lines.append(f'"auto" is: {", ".join(values)}')
    return lines


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _where_the_rate_falls_to(
    engine: dict[str, Any], filled: dict[str, Any], total_steps: int
) -> list[str]:
    """WarmupDecayLR ends where it began, and with "auto" for that, the more so the shorter the
    run: a line that says so, unless next to nothing is left of the rate."""
    scheduler, where = engine["scheduler"], "scheduler.params.warmup_min_lr"
    if where not in filled or scheduler["type"] != "WarmupDecayLR":
        return []
    params = scheduler["params"]
    low, peak, total = (params[k] for k in ("warmup_min_lr", "warmup_max_lr", "total_num_steps"))
    warmup = max(2, params["warmup_num_steps"])
    before = total_steps - 2  # DeepSpeed gives the first two steps the rate of its step 0
    if before <= warmup:  # it has not begun to fall
        return []
    last = low + (peak - low) * max(0, total - before) / max(1, total - warmup)
    if last <= LEFT * peak:
        return []
    return [
        f'{where} "auto" is also where the rate falls to: the last step has {last:.3g}, '
        f"{last / peak:.0%} of the peak; for a fall to zero: --override {where}=0"
    ]


def _check_schedule(scheduler: dict[str, Any], total_steps: int, notes: list[str]) -> None:
    """Say where the schedule is not made for this run."""
    params = scheduler["params"]
    if scheduler["type"] == "OneCycle":
        notes += _check_cycle(params, total_steps)
        return
    for name in ("total_num_steps", "warmup_num_steps"):
        written = params.get(name, 0)
        if written > total_steps or (name == "total_num_steps" and 0 < written < total_steps):
            notes.append(f"scheduler.params.{name} is {written}; this run has {total_steps} steps")
    if not params.get("warmup_min_lr"):
        notes.append(
            f"{scheduler['type']} starts at learning rate 0: its first steps change nothing"
        )


def _check_cycle(params: dict[str, Any], total_steps: int) -> list[str]:
    """Of OneCycle, whose second half is as long as its first where it is not written, and whose
    rate falls further once the cycle is over, if it is to."""
    first = params["cycle_first_step_size"]
    second = params.get("cycle_second_step_size", first)
    decays = [name for name in ("decay_lr_rate", "decay_mom_rate") if params.get(name)]
    goes_on = bool(decays and params.get("decay_step_size"))
    notes: list[str] = []
    if first + second > total_steps or (first + second < total_steps and not goes_on):
        notes.append(
            f"scheduler.params.cycle_first_step_size and cycle_second_step_size are {first} and "
            f"{second}, {first + second} in all; this run has {total_steps} steps"
        )
    for name in decays:
        where = f"scheduler.params.{name} has no effect"
        if not goes_on:
            notes.append(f"{where} without decay_step_size")
        elif first + second >= total_steps:
            notes.append(f"{where}: it comes after the cycle, and the run ends before")
    return notes
