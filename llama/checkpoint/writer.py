"""Saves beside the training, which then waits for a disk only where it is slower than an epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint.content import Checkpoint
from llama.checkpoint.store import Store


class Writer:
    """Writes one checkpoint at a time, in a thread. What goes wrong there is kept in `failed`, for
    whoever asks next: no failure is lost, and `wait` comes before every end of a run."""

    def __init__(self, store: Store, config: AdapterConfig, keep: int) -> None:
        self.failed: Exception | None = None
        self._store, self._config, self._keep = store, config, keep
        self._thread: threading.Thread | None = None

    def save(self, checkpoint: Checkpoint, first: Callable[[], None]) -> None:
        """Call `first`, then write `checkpoint`, which must not change any more. Waits for the one
        before, and raises what went wrong with it."""
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(checkpoint, first), name="saving")
        self._thread.start()

    def _save(self, checkpoint: Checkpoint, first: Callable[[], None]) -> None:
        try:
            first()
            self._store.save(checkpoint, self._config, self._keep)
        except Exception as error:  # of whatever kind: the thread has nobody else to tell
            self.failed = error

    def wait(self) -> None:
        """Until all is on the disk; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        if self.failed is not None:
            raise self.failed
