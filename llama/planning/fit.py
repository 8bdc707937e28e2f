"""What fits into a memory: whether a step does, the largest one that does, and how much of each
block may be kept.

A search asks often, so it asks `estimate`, which traces a few blocks and takes the others to be
like them; what it finds is then held to a trace of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from llama.fused.keeping import choose
from llama.model.kept import Kept
from llama.planning.job import Job
from llama.planning.levels import FRAGMENTS, sizes_of
from llama.planning.memory import KEPT, LOSS, WORKING, memory

MOST_ROWS, MOST_TOKENS = 4096, 2**22
"""No larger step is looked for: rows of a micro-batch, tokens of a row."""
_FEW = (2, 4)
"""Blocks that an estimate traces."""
_FEW_GATHERED = (8, 12)
"""The same under ZeRO-3, whose windows reach over several blocks."""
_LESS = 0.9


@lru_cache(maxsize=512)
def estimate(job: Job) -> int:
    """About `memory(job).used_bytes`: what a further block adds is taken from two traces of few
    blocks. The whole is traced where blocks keep different things."""
    few, more = _FEW_GATHERED if job.zero.stage == 3 else _FEW
    blocks = job.config.n_layers
    if blocks <= more or not isinstance(job.checkpointing, str):
        return memory(job).used_bytes
    used = [
        memory(replace(job, config=job.config.with_layers(count))).used_bytes
        for count in (few, more)
    ]
    each = (used[1] - used[0]) / (more - few)
    return int(used[1] + (blocks - more) * each)


def fits(job: Job, available: int) -> bool:
    """Whether what the device shows as used is at most `available` bytes."""
    return memory(job).used_bytes <= available


def largest_micro_batch(job: Job, available: int) -> int:
    """The most rows of a micro-batch that fit `available` bytes; 0 where not even one row does.
    Rows are whole, each one document."""
    return _verified(
        lambda n: replace(job, micro_batch=n, documents=None, supervised=None),
        available,
        MOST_ROWS,
    )


def largest_seq_len(job: Job, available: int, step: int = 128) -> int:
    """The same of the tokens of a row, in multiples of `step`."""
    return step * _verified(
        lambda n: replace(job, seq_len=n * step, documents=None, supervised=None),
        available,
        MOST_TOKENS // step,
    )


def keep_what_fits(job: Job, available: int) -> Job:
    """`--checkpointing auto`: as much of each block kept as `available` bytes hold, by the order of
    `llama/fused/keeping.py`; the least everywhere where even that does not fit."""
    blocks = job.config.n_layers
    sizes = sizes_of(job)
    least = replace(job, checkpointing=(Kept.INPUT,) * blocks)
    plan = memory(least)
    by_name = {term.name: term.bytes for term in plan.terms}
    of_blocks = sum(by_name.get(name, 0) for name in (KEPT, WORKING, LOSS))
    room = available - (plan.used_bytes - of_blocks)
    share = 1.0 - FRAGMENTS if job.device == "cuda" else 1.0
    while True:
        kept = tuple(choose(sizes, blocks, int(room * share)))
        found = replace(job, checkpointing=kept)
        if max(kept) == Kept.INPUT or fits(found, available):
            return found
        share *= _LESS


def _verified(at: Callable[[int], Job], available: int, most: int) -> int:
    """The largest number up to `most` whose job fits; 0 for none."""
    found = _largest(lambda n: estimate(at(n)), available, most)
    if found:  # the estimate is off by about as much for all of them
        off = estimate(at(found)) - memory(at(found)).used_bytes
        found = _largest(lambda n: estimate(at(n)), available + off, most)
    while found and not fits(at(found), available):
        found -= max(1, found // 50)
    return found


def _largest(used: Callable[[int], int], available: int, most: int) -> int:
    """The largest n up to `most` with `used(n) <= available`, where `used` grows with n; 0 for
    none. Where the next guess lies is taken from the last two: `used` is nearly a line."""
    low, at_low = 1, used(1)
    if at_low > available:
        return 0
    high, at_high, tried = most + 1, 0, 0
    step = 1
    while high - low > 1:
        tried += 1
        if not at_high:
            guess = min(low + step, most)
        elif tried % 3:
            guess = low + int((available - at_low) * (high - low) / max(1, at_high - at_low))
        else:  # where it is no line, halving still ends
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        taken = used(guess)
        if taken <= available:
            each = (taken - at_low) / (guess - low)
            low, at_low = guess, taken
            step = max(1, int((available - at_low) / each) if each > 0 else most)
        else:
            high, at_high = guess, taken
    return low
