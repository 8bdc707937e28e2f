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
    return _largest(lambda n: _fits(replace(job, micro_batch=n), available), MOST_ROWS)


def largest_seq_len(job: Job, available: int, step: int = 128) -> int:
    """The same of the tokens of a row, in multiples of `step`."""
    assert job.documents is None
    fits = _largest(lambda n: _fits(replace(job, seq_len=n * step), available), MOST_TOKENS // step)
    return fits * step


def _fits(job: Job, available: int) -> bool:
    return memory(job).used_bytes <= available


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where all smaller ones do too; 0 for none."""
    if not fits(1):
        return 0
    low = 1
    while low < most and fits(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most + 1)  # does not fit, or is out of bounds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
