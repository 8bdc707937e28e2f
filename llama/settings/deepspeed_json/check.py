"""What is wrong with a DeepSpeed JSON: each key by the table, then what must agree with what."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from llama.errors import UserError
from llama.files.inputs import nearest
from llama.settings.deepspeed_json import auto, keys
from llama.settings.deepspeed_json.auto import AUTO
from llama.settings.deepspeed_json.keys import BATCH, KEYS, SCHEDULERS
from llama.settings.deepspeed_json.kinds import Kind, Refused, Table, Unused
from llama.settings.options.answers import in_deepspeed_json


def check(config: dict[str, Any], file: str, data_parallel: int | None = None) -> list[str]:
    """Every problem of `config`, one line each, headed by `file`. Whether the batch sizes agree is
    judged where the number of data-parallel ranks is given."""
    problems: list[str] = []
    sound = _against_table(config, KEYS, "", problems)
    problems += [
        *_missing(config),
        *_precision(sound),
        *_optimizer(sound),
        *_scheduler(sound),
        *_offload(sound),
        *_monitors(sound),
    ]
    written = [config.get(key) for key in BATCH]
    if data_parallel and any(written[:2]) and written == [sound.get(key) for key in BATCH]:
        try:
            batch_sizes(sound, data_parallel)
        except UserError as error:
            problems += error.problems
    return [f"{file}: {problem}" for problem in problems]


def get(config: dict[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` where it is not written."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return default
        node = node[name]
    return node


def is_left_off(value: Any) -> bool:
    """Whether a section that is not supported leaves to us whether it is on."""
    return isinstance(value, dict) and value.get("enabled") == AUTO


def zero_stage(config: dict[str, Any], default: int) -> int:
    """The stage of ZeRO, `default` where none is written, or none that is right."""
    stage = get(config, "zero_optimization.stage", default)
    return auto.ZERO_STAGE if stage == AUTO else stage


def cycles_momentum(config: dict[str, Any]) -> bool:
    """Whether the schedule is one that sets the first of Adam's betas at every step."""
    is_one_cycle = get(config, "scheduler.type") == "OneCycle"
    return is_one_cycle and get(config, "scheduler.params.cycle_momentum", True) is not False


def batch_sizes(config: dict[str, Any], data_parallel: int) -> tuple[int, int]:
    """Micro-batch and accumulation steps: `train_batch_size` is their product times the number of
    data-parallel ranks, and of the three what is not written follows (accumulation is 1 where that
    leaves it open). "auto" is what follows too, and where nothing does as in `auto`. Raises
    `UserError` where they cannot agree."""
    whole, micro, steps = (config.get(key, 0) for key in BATCH)
    if micro == AUTO or (whole == AUTO and not micro):
        follows = whole not in (0, AUTO) and steps not in (0, AUTO)
        micro = 0 if follows else auto.MICRO_BATCH
    whole = 0 if whole == AUTO else whole
    if steps == AUTO:
        steps = 0 if whole else auto.ACCUMULATION
    assert whole or micro, "check reports it"
    if not whole:
        return micro, steps or 1
    ranks = f"{data_parallel} data-parallel rank{'s' if data_parallel > 1 else ''}"
    if micro and steps:
        agreed, product = f"{BATCH[1]} {micro} x {BATCH[2]} {steps} x {ranks}", micro * steps
        if whole != product * data_parallel:
            raise UserError(f"{BATCH[0]}: {whole} is not {agreed} = {product * data_parallel}")
        return micro, steps
    name, factor = (BATCH[1], micro) if micro else (BATCH[2], steps or 1)
    other, rest = divmod(whole, factor * data_parallel)
    if rest:
        raise UserError(f"{BATCH[0]}: {whole} is not a multiple of {name} {factor} x {ranks}")
    return (micro, other) if micro else (other, factor)


def rate_problems(config: dict[str, Any], said_of_rate: str = "") -> list[str]:
    """Whether the schedule goes up to the optimizer's rate, from below it. What "auto" stands for
    cannot be compared before it is filled in: ask again then. `said_of_rate` follows the rate."""
    params, rate = get(config, "scheduler.params", {}), get(config, "optimizer.params.lr")
    lr = f"optimizer.params.lr, {rate}{said_of_rate}"
    problems: list[str] = []
    for prefix in ("warmup", "cycle"):
        low, high = (params.get(f"{prefix}_{name}_lr", AUTO) for name in ("min", "max"))
        where = f"scheduler.params.{prefix}"
        if high != AUTO and rate is not None and high != rate:
            here = "write it there too" if said_of_rate else "leave it out"
            problems.append(f"{where}_max_lr: {high} is not {lr}, and would replace it; {here}")
        elif low != AUTO and rate not in (None, AUTO) and low > rate:
            problems.append(f"{where}_min_lr: {low} is above {lr}")
    return problems


def _against_table(
    section: dict[str, Any], table: Table, prefix: str, problems: list[str]
) -> dict[str, Any]:
    """`section` without the keys that the table does not allow, each of which is a problem."""
    kind = section.get("type") if prefix == "scheduler." else None
    if isinstance(kind, str) and kind in SCHEDULERS:
        table = {**table, "params": SCHEDULERS[kind]}
    known = [name for name, node in table.items() if not isinstance(node, Refused)]
    sound: dict[str, Any] = {}
    for name, value in section.items():
        where, node = prefix + name, table.get(name)
        found = json.dumps(value)[:60]
        if node is None:
            hint = in_deepspeed_json(name) or nearest(name, known, prefix)
            problems.append(f"{where}: unknown key{hint}")
        elif isinstance(node, Refused):
            if not is_left_off(value):
                problems.append(f"{where}: {node.reason}")
        elif isinstance(node, Unused):
            continue
        elif isinstance(node, Kind):
            if node.accepts(value) or (value == AUTO and where in auto.VALUES):
                sound[name] = value
            else:
                expected = node.expected + (', or "auto"' if where in auto.VALUES else "")
                problems.append(f"{where}: expected {expected}, found {found}")
        elif isinstance(value, dict):
            sound[name] = _against_table(value, node, f"{where}.", problems)
        else:
            problems.append(f"{where}: expected an object, found {found}")
            sound[name] = {}
    return sound


def _missing(config: dict[str, Any]) -> list[str]:
    """Keys that must be written because leaving them out means something other than it seems."""
    reasons = {
        "gradient_clipping": "missing; write a norm, or 0 for off (DeepSpeed's own default is 1.0)",
    }
    if "optimizer" in config:
        reasons["optimizer.type"] = f"missing; write one of {', '.join(keys.OPTIMIZERS)}"
        reasons["optimizer.params.lr"] = "missing; write the learning rate"
    if not any(key in config for key in BATCH[:2]):
        reasons[BATCH[1]] = f"missing; write it, or {BATCH[0]}"
    for name, table in KEYS.items():
        if isinstance(table, dict) and "enabled" in table and name in config:
            reasons[f"{name}.enabled"] = "missing; without it DeepSpeed ignores the section"
    if "zero_optimization" in config:
        reasons["zero_optimization.stage"] = "missing; write 0, 1, 2 or 3"
    if "scheduler" in config:
        reasons["scheduler.type"] = f"missing; write one of {', '.join(SCHEDULERS)}"
        for name in keys.SCHEDULER_REQUIRED.get(str(get(config, "scheduler.type")), ()):
            where = f"scheduler.params.{name}"
            or_auto = ', or "auto"' if where in auto.VALUES else ""
            reasons[where] = f"missing; write a number{or_auto}"
    return [f"{path}: {reason}" for path, reason in reasons.items() if _is_absent(config, path)]


def _is_absent(config: dict[str, Any], path: str) -> bool:
    """Whether nothing is written at `path`. A section of the wrong kind is a problem of its own."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, dict):
            return False
        if name not in node:
            return True
        node = node[name]
    return False


def _precision(config: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    fp16, bf16 = (get(config, f"{name}.enabled") is True for name in ("fp16", "bf16"))
    if fp16 and bf16:
        problems.append("fp16.enabled, bf16.enabled: both are true; a run has one precision")
    stage = zero_stage(config, default=-1 if "zero_optimization" in config else 0)
    if (fp16 or bf16) and stage == 0:
        problems.append(
            f"zero_optimization.stage: 0 with {'fp16' if fp16 else 'bf16'}; write 1, 2 or 3 "
            "(DeepSpeed's optimizer for this case leaves tensor-parallel shards out of the norm)"
        )
    scale = get(config, "fp16", {})
    start = 2 ** scale.get("initial_scale_power", 16)
    if not scale.get("loss_scale") and scale.get("min_loss_scale", 1) > start:
        problems.append(f"fp16.min_loss_scale: above the initial scale of {start}")
    return problems


def _optimizer(config: dict[str, Any]) -> list[str]:
    params = get(config, "optimizer.params", {})
    problems: list[str] = []
    if params.get("fused") and params.get("foreach"):
        problems.append("optimizer.params.fused, optimizer.params.foreach: write one of them")
    if params.get("adam_w_mode") is False and get(config, "optimizer.type", "").lower() == "adamw":
        problems.append("optimizer.params.adam_w_mode: false has no effect on AdamW; write Adam")
    return problems


def _scheduler(config: dict[str, Any]) -> list[str]:
    params, problems = get(config, "scheduler.params", {}), rate_problems(config)
    total, warmup = (params.get(f"{name}_num_steps", AUTO) for name in ("total", "warmup"))
    if AUTO not in (total, warmup) and warmup > total:
        where = "scheduler.params.warmup_num_steps"
        problems.append(f"{where}: {warmup} is above total_num_steps, {total}")
    if cycles_momentum(config) and get(config, "optimizer.params.betas", AUTO) != AUTO:
        problems.append(
            "optimizer.params.betas: OneCycle replaces them; leave them out, or write "
            "scheduler.params.cycle_momentum false"
        )
    return problems


def _offload(config: dict[str, Any]) -> list[str]:
    stage, problems = zero_stage(config, default=3), []
    for name, least in (("offload_param", 3), ("offload_optimizer", 1)):
        where = f"zero_optimization.{name}"
        if get(config, f"{where}.device") == "cpu" and stage < least:
            problems.append(f"{where}: needs zero_optimization.stage {least} or above")
    return problems


def _monitors(config: dict[str, Any]) -> list[str]:
    return [
        f"{name}.enabled: the package {package} is not installed"
        for name, package in keys.MONITOR_PACKAGES.items()
        if get(config, f"{name}.enabled") and importlib.util.find_spec(package) is None
    ]
