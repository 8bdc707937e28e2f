"""Checks of the options that name rows: --data, --eval_data, --eval_split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llama.files.shards import data_problems
from llama.files.weighted import weight_problems, weighted, without_weights


def check_sets(data: Sequence[Path]) -> list[str]:
    """Problems of data sets that may have weights."""
    return [*weight_problems("data", data), *data_problems("data", without_weights(data))]


def check_plain(option: str, data: Sequence[Path]) -> list[str]:
    """Problems of data sets in which each row counts once."""
    weights = [
        f"--{option}: {path}: a weight has no effect here; give {found.path}"
        for path, found in zip(data, weighted(data), strict=True)
        if found.path != path and not os.path.lexists(path)
    ]
    return [*weights, *data_problems(option, without_weights(data))]


def check_split(split: float | None, eval_data: Sequence[Path]) -> list[str]:
    """Problems of what --eval_split asks for."""
    if split is None:
        return []
    problems = []
    if not 0 < split < 1 and not (split >= 1 and split == int(split)):
        expected = "expected a share above 0 and below 1, or a number of examples"
        problems.append(f"--eval_split: {expected}, found {split:g}")
    if eval_data:
        problems.append("--eval_split: --eval_data says what is held out; give one of them")
    return problems
