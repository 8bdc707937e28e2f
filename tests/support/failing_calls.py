"""Something happens at one of the file operations that a piece of work makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace", "link", "unlink", "rmdir")
"""Of `os`, all by which writing can change the disk; `shutil` goes through them too."""


@contextmanager
def before_each_call(act: Callable[[], None]) -> Iterator[None]:
    real = {name: getattr(os, name) for name in CALLS}

    def acting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            act()
            return real[name](*args, **kwargs)

        return call

    try:
        for name in CALLS:
            setattr(os, name, acting(name))
        yield
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


class At:
    """Calls `what` at the `index`th operation, counted from 0."""

    def __init__(self, index: int, what: Callable[[], None]) -> None:
        self.index, self.what, self.count = index, what, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.index + 1:
            self.what()


def operations(work: Callable[[], object]) -> int:
    """How many `work` makes."""
    counter = At(-1, lambda: None)
    with before_each_call(counter):
        work()
    return counter.count


def killed_at(index: int, work: Callable[[], object]) -> None:
    """Do `work` in a process of its own that is killed before its operation `index`."""
    child = os.fork()
    if child == 0:
        with before_each_call(At(index, lambda: os.kill(os.getpid(), signal.SIGKILL))):
            work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
