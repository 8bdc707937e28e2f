"""Signs of life of this process, for the watchdog of its rank (`llama/launch/stopping.py`). Work
that may take long shows one from time to time, with no need to know who watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Signs:
    """Of any thread: one that writes a checkpoint shows that its process is not hung."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.excused = 0


_SIGNS = _Signs()


def show() -> None:
    """The process is alive: called before each part of long work, none of which takes minutes."""
    _SIGNS.last = time.monotonic()


@contextmanager
def excused() -> Iterator[None]:
    """In here the process waits for another, which shows its own signs of life, and for so long as
    the wait itself gives up after."""
    _SIGNS.excused += 1
    try:
        yield
    finally:
        _SIGNS.excused -= 1
        show()


def silence() -> float:
    """Seconds since the last sign of life; none while the process is excused."""
    return 0.0 if _SIGNS.excused else time.monotonic() - _SIGNS.last


def was_stopped(seconds: float) -> None:
    """For so long the process could do nothing at all: that is no silence."""
    # Not beyond now: another thread may have shown a sign already.
    _SIGNS.last = min(time.monotonic(), _SIGNS.last + seconds)
