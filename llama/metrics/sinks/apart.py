"""A place that may be far away, kept apart from the training: what happens there stays there."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llama.metrics.sinks.sink import Sink, Status
from llama.pages.sample import Sample

_WAITING = 100_000
"""Calls that may wait: hours of steps."""

_Call = Callable[[Sink], None]


class Apart:
    """Hands each call to a sink that lives in a thread of its own. The sink is made there too.

    Whatever it raises, and a server that takes longer than the run has patience, is one line by
    `say`; then the run goes on without it. No method here raises, and none but `wait` waits.
    """

    def __init__(self, name: str, make: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._make, self._say = name, make, say
        self._calls: queue.Queue[_Call | None] = queue.Queue(_WAITING)
        self._sink: Sink | None = None
        self._given_up = threading.Event()
        # a daemon: a server that does not answer must not keep the process from its end
        self._thread = threading.Thread(target=self._work, name=f"report to {name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda sink: sink.scalars(step, values))

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        self._put(lambda sink: sink.histogram(step, name, values))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._put(lambda sink: sink.samples(step, samples))

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        self._put(lambda sink: sink.end(status, summary))
        self._put(None)

    def wait(self, until: float) -> None:
        """Let what was told arrive, until that moment of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("it takes too long to take what the run has told it")

    @property
    def how_to_look(self) -> str | None:
        """None where the run is not to be seen there."""
        return None if self._given_up.is_set() or not self._sink else self._sink.how_to_look

    def _put(self, call: _Call | None) -> None:
        if self._given_up.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"{_WAITING:,} calls wait for it")

    def _work(self) -> None:
        try:
            self._sink = self._make()
            while (call := self._calls.get()) is not None and not self._given_up.is_set():
                call(self._sink)
        except BaseException as error:  # some of these libraries end the process
            self._give_up(_in_words(error))

    def _give_up(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            self._say(f"--report_to {self._name}: {why}; the run goes on without it")


def _in_words(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
