"""The largest step that fits into a memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llama.planning.job import Job
from llama.planning.memory import memory

MOST_ROWS, MOST_TOKENS = 4096, 2**22
"""No larger step is looked for: rows of a micro-batch, tokens of a row."""


def largest_micro_batch(job: Job, available: int) -> int:
    """The most rows of a micro-batch with which what the device shows as used is at most
    `available` bytes; 0 where not even one row fits. `job.documents` must be None."""
    assert job.documents is None
    return _largest(lambda n: _used(replace(job, micro_batch=n)), available, MOST_ROWS)


def largest_seq_len(job: Job, available: int, step: int = 128) -> int:
    """The same of the tokens of a row, in multiples of `step`."""
    assert job.documents is None
    most = MOST_TOKENS // step
    return step * _largest(lambda n: _used(replace(job, seq_len=n * step)), available, most)


def _used(job: Job) -> int:
    return memory(job).used_bytes


def _largest(used: Callable[[int], int], available: int, most: int) -> int:
    """The largest number up to `most` that uses no more than is available, where more uses more; 0
    for none. Memory grows nearly in proportion, so the line through two known numbers says where to
    look; each third look halves what is left, for where it does not."""
    first = used(1)
    if first > available:
        return 0
    low, high, guess, looks = 1, most + 1, 2, 0
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        here = used(guess)
        low, high = (guess, high) if here <= available else (low, guess)
        looks += 1
        slope = max(1.0, (here - first) / (guess - 1))
        guess = (low + high) // 2 if looks % 3 == 0 else 1 + int((available - first) / slope)
    return low
