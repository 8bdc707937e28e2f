"""Ctrl-C while an answer is given: it ends the answer and not the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopKey:
    """A context in which Ctrl-C only sets `pressed`, for whoever gives an answer to look at between
    two tokens. A second one in the same answer raises KeyboardInterrupt there and then: a long
    conversation may take long to read before the first token."""

    def __init__(self) -> None:
        self.pressed = False
        self._answering = False

    def __enter__(self) -> StopKey:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around one answer."""
        self.pressed, self._answering = False, True
        try:
            yield
        finally:
            self._answering = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed and self._answering:
            raise KeyboardInterrupt
        self.pressed = True
