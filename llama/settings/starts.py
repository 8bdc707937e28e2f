"""The words that `--lora.start` takes."""

from __future__ import annotations

import re

UNIFORM, PISSA = "uniform", "pissa"
WORDS = (UNIFORM, PISSA, "pissa_niter_N")
_APPROXIMATE = re.compile(rf"{PISSA}_niter_(0|[1-9][0-9]{{0,2}})")


def is_start(word: str) -> bool:
    """Whether `word` is one of `WORDS`, with a number below 1000 for N."""
    return word in (UNIFORM, PISSA) or iterations(word) is not None


def iterations(word: str) -> int | None:
    """The N of `pissa_niter_N`."""
    match = _APPROXIMATE.fullmatch(word)
    return int(match[1]) if match else None
