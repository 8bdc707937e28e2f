"""A learning rate for each group of parameters, and the schedules that move them together.

Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024: B learns at a multiple
of A's rate. DeepSpeed's schedules take one rate for all groups, or a list of one for each; the
cosine takes what each group has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llama.adapters.attach import LR_RATIO

_RATES = ("warmup_min_lr", "warmup_max_lr")
"""What a schedule is told of rates."""


def with_rates(groups: Sequence[Mapping[str, Any]], lr: float) -> list[dict[str, Any]]:
    """`groups` as torch's optimizers take them, each at its multiple of `lr`."""
    return [{"params": group["params"], "lr": lr * group[LR_RATIO]} for group in groups]


def with_lists(groups: Sequence[Mapping[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration whose schedule has a rate for each of `groups`."""
    config = copy.deepcopy(config)
    params = config.get("scheduler", {}).get("params", {})
    for name in _RATES:
        if name in params and len(groups) > 1:
            params[name] = [params[name] * group[LR_RATIO] for group in groups]
    return config
