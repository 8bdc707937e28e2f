"""Data sets as they are named on the command line: a path, and perhaps `:2` after it, its weight.

    a.jsonl         its examples come once in every epoch
    a.jsonl:2       twice
    a.jsonl:0.5     half of its packed rows in one epoch, the other half in the next
    a.jsonl:1/3     a third, and so on

A weight ends in a number above 0, which may be a fraction. A path that exists is itself, whatever
it ends in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

MOST = 1000
"""The largest weight: a larger one is a slip."""
_WEIGHT = re.compile(r"(.+):(\d+/\d+|\d+(?:\.\d+)?|\.\d+)", re.DOTALL)


@dataclass(frozen=True)
class Weighted:
    """A data set and how often each of its examples comes in an epoch."""

    path: Path
    weight: Fraction = Fraction(1)


def weighted(paths: Sequence[Path]) -> list[Weighted]:
    """Each of `paths` with its weight."""
    return [_weighted(path) for path in paths]


def without_weights(paths: Sequence[Path]) -> list[Path]:
    """The paths alone."""
    return [found.path for found in weighted(paths)]


def weight_problems(option: str, paths: Sequence[Path]) -> list[str]:
    """Weights that nothing can be read with."""
    return [
        f"--{option}: {path}: the weight after the colon is to be above 0 and at most {MOST:,}"
        for path, found in zip(paths, weighted(paths), strict=True)
        if not 0 < found.weight <= MOST
    ]


def _weighted(path: Path) -> Weighted:
    found = _WEIGHT.fullmatch(str(path))
    if found is None or os.path.exists(path):
        return Weighted(path)
    try:
        return Weighted(Path(found[1]), Fraction(found[2]))
    except ZeroDivisionError:
        return Weighted(Path(found[1]), Fraction(0))
