"""What fits into a memory: whether a step does, and the largest one that does.

A search asks often, so it asks `estimate`, which traces a few blocks and takes the others to be
like them; what it finds is then held to a trace of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from llama.planning.job import Job, of_few_blocks
from llama.planning.memory import Memory, Term, memory

MOST_ROWS, MOST_TOKENS = 4096, 2**22
"""No larger step is looked for: rows of a micro-batch, tokens of a row."""
LONG = 8192
"""Tokens of a micro-batch from which on memory is taken to grow in a line: the loss of more goes by
so many chunks that it is long in tracing."""
CLOSE = 50
"""Which part of it the largest may be above what is found, each look being seconds."""
PATIENCE = 6
"""Looks along the line before that."""


@lru_cache(maxsize=512)
def estimated(job: Job) -> Memory:
    """`memory(job)`, from two traces of few blocks where these say what further ones add."""
    few = of_few_blocks(job)
    if few is None:
        return memory(job)
    jobs, whole = few
    short, longer = map(memory, jobs)

    def all_of(terms: Sequence[Term], before: Sequence[Term]) -> tuple[Term, ...]:
        had = {term.name: term.bytes for term in before}
        return tuple(
            replace(term, bytes=whole(had.get(term.name, 0), term.bytes)) for term in terms
        )

    return Memory(all_of(longer.terms, short.terms), all_of(longer.beside, short.beside))


def estimate(job: Job) -> int:
    """About `memory(job).used_bytes`."""
    return estimated(job).used_bytes


def fits(job: Job, available: int) -> bool:
    """Whether what the device shows as used is at most `available` bytes."""
    return memory(job).used_bytes <= available


def largest_micro_batch(job: Job, available: int) -> int:
    """The most rows of a micro-batch that fit `available` bytes; 0 where not even one row does.
    Rows are whole, each one document."""
    return _verified(
        job,
        lambda n: replace(job, micro_batch=n, documents=None, supervised=None),
        available,
        MOST_ROWS,
    )


def largest_seq_len(job: Job, available: int, step: int = 128) -> int:
    """The same of the tokens of a row, in multiples of `step`."""
    return step * _verified(
        job,
        lambda n: replace(job, seq_len=n * step, documents=None, supervised=None),
        available,
        MOST_TOKENS // step,
    )


def _verified(job: Job, at: Callable[[int], Job], available: int, most: int) -> int:
    """The largest number up to `most` whose job fits, to within `CLOSE`; 0 for none. Estimates find
    it, off by about as much for all of them as for `job`; a whole trace has the last word."""
    far = max(2, LONG // at(1).tokens)

    def used(n: int) -> int:
        if n <= far:
            return estimate(at(n))
        near = far // 2
        last = estimate(at(far))
        return last + (n - far) * (last - estimate(at(near))) // (far - near)

    room = available + estimate(job) - memory(job).used_bytes
    guess = _largest(used, room, most, far)
    found = _largest(lambda n: estimate(at(n)), room, most, guess, CLOSE)
    while found and not fits(at(found), available):
        found -= 1 + found // CLOSE
    return found


def _largest(
    used: Callable[[int], int], available: int, most: int, guess: int = 2, close: int = 0
) -> int:
    """The largest number up to `most` that uses no more than is available, where more uses more; 0
    for none. Memory grows nearly in proportion, so the line through the last two known numbers says
    where to look after `guess`. Where that finds nothing soon, for it is no line, every other look
    halves what is left. Where `close` is given, a number is near enough to the largest if that is
    less than a part in `close` of it away, and no look is nearer to one that fits."""
    before = here = 1
    had = taken = used(1)
    if taken > available:
        return 0
    low, high, looks = 1, most + 1, 0
    while high - low > (near := 1 + low // close if close else 1):
        before, had = here, taken
        here = min(max(guess, low + near), high - 1)
        taken = used(here)
        low, high = (here, high) if taken <= available else (low, here)
        looks += 1
        slope = max(1.0, (taken - had) / (here - before))
        halves = looks > PATIENCE and looks % 2 == 0
        guess = (low + high) // 2 if halves else here + int((available - taken) // slope)
    return low
