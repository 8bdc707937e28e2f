"""How frozen weights are held, by the names that --base takes, and what each asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from llama.settings.deepspeed_json.check import zero_stage

HALF = "half"
Base = Literal["half", "int8", "fp8", "nf4"]
"""The class of each is in `llama/base/kinds.py`."""
PACKAGES = {"nf4": "bitsandbytes"}
"""Of each, the package that it needs and that is not installed with this one."""


def check_held(base: str) -> list[str]:
    """Whether what holds them is installed."""
    package = PACKAGES.get(base)
    if package is None or importlib.util.find_spec(package):
        return []
    return [
        f"--base {base}: the package {package} is not installed: "
        f"pip install 'llama-lora[{base}]', or pip install {package}"
    ]


def check_base(base: str, method: str) -> list[str]:
    """Every problem of holding weights so while training by `method`."""
    if base != HALF and method != "lora":
        return [
            f"--base {base}: --method {method} trains every weight, and {base} is for frozen ones; "
            "leave it out, or train adapters (--method lora)"
        ]
    return check_held(base)


def check_base_zero(base: str, config: dict[str, Any], file: Path) -> list[str]:
    """Whether DeepSpeed is to leave the weights alone."""
    if base == HALF or zero_stage(config, default=0) != 3:
        return []
    return [
        f"--base {base}: {file} has ZeRO-3, which cuts up weights in 16 or 32 bits alone: give a "
        "JSON with zero_optimization.stage 0 to 2, as ds_configs/lora.json, or leave --base out"
    ]
