"""What a number of metrics.jsonl is called where a run is watched: in groups, each a row of charts.

The names of metrics.jsonl itself are flat, and kept: other programs read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TRAIN_LOSS, EVAL_LOSS, BEST_LOSS = "train/loss", "eval/loss", "eval/best_loss"

_NAMES = {
    "eval_loss": EVAL_LOSS,
    "seconds": "speed/seconds",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "peak_memory_bytes": "memory/peak_gib",
}
"""The others are of the group `train`."""
_UNITS = {"peak_memory_bytes": 2.0**-30}
"""What a number is multiplied by, where one that people read has another unit."""


def grouped(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among `values`, one line of metrics.jsonl, by grouped names. NaN and infinity are
    left out, as most places refuse them; so is the epoch of an evaluation, which would be a second
    one at a step that has one."""
    return {
        _NAMES.get(name, f"train/{name}"): float(value) * _UNITS.get(name, 1.0)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        if not (name == "epoch" and "eval_loss" in values)
    }
