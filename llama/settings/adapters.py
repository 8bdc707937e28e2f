"""Whether the settings of adapters make sense, by themselves and with a schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llama.files.inputs import nearest
from llama.model.config import LINEARS
from llama.settings.commands import LoRAOptions
from llama.settings.starts import UNIFORM, is_start
from llama.settings.starts import WORDS as STARTS
from llama.settings.targets import WORDS


def check_lora(lora: LoRAOptions) -> list[str]:
    """Every problem of the adapters' settings; the rank against the model's widths comes later."""
    problems = []
    if lora.rank < 1:
        problems.append(f"--lora.rank: expected at least 1, found {lora.rank}")
    if not 0 < lora.alpha < math.inf:
        problems.append(f"--lora.alpha: expected a finite number above 0, found {lora.alpha}")
    if not 0 <= lora.dropout < 1:
        problems.append(f"--lora.dropout: expected from 0 to below 1, found {lora.dropout}")
    if not 0 < lora.b_lr_ratio < math.inf:
        expected = "expected a finite number above 0"
        problems.append(f"--lora.b_lr_ratio: {expected}, found {lora.b_lr_ratio}")
    if not is_start(lora.start):
        problems.append(
            f"--lora.start: expected among {', '.join(STARTS)}, with a number below 1000 for N, "
            f"found {lora.start!r}{nearest(lora.start, STARTS)}"
        )
    elif lora.start != UNIFORM and lora.kind != "lora":
        problems.append(
            f"--lora.start: {lora.start} is for --lora.kind lora, found {lora.kind}; leave one out"
        )
    for index, name in enumerate(lora.targets):
        if name not in LINEARS:
            known = f"expected among {','.join(LINEARS)}, found {name!r}"
            problems.append(f"--lora.targets: {known}{nearest(name, (*LINEARS, *WORDS))}")
        elif name in lora.targets[:index]:
            problems.append(f"--lora.targets: {name} is given twice")
    if not lora.targets:
        problems.append(f"--lora.targets: expected one or more of {','.join(LINEARS)}")
    return problems


def check_rates(lora: LoRAOptions, config: dict[str, Any], file: Path) -> list[str]:
    """Whether the schedule knows of more than one rate."""
    scheduler = config.get("scheduler")
    is_one = isinstance(scheduler, dict) and scheduler.get("type") == "OneCycle"
    if lora.b_lr_ratio == 1 or not is_one:
        return []
    return [
        f"--lora.b_lr_ratio: {file} has the schedule OneCycle, under which all learn at one rate: "
        "write WarmupLR, WarmupDecayLR or WarmupCosineLR there, or leave the option out"
    ]
