"""A new file of any size, written with signs of life, and had on the disk as it grows."""

from __future__ import annotations

import os
from pathlib import Path

from llama.files import life

_CHUNK = 1 << 24
_UNSYNCED = 1 << 28
"""Bytes that may wait for the disk: were all of a large file's left to the end, that one call could
take longer than a rank may show no sign of life."""


class NewFile:
    """There must be none of its name. Raises `OSError` as the system does."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._unsynced = 0

    def write(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        while rest:
            life.show()
            written = os.write(self._descriptor, rest[:_CHUNK])
            rest = rest[written:]
            self._unsynced += written
            if self._unsynced >= _UNSYNCED:
                self._sync()

    def finish(self) -> None:
        """Have all of it on the disk."""
        self._sync()
        self.close()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync(self) -> None:
        life.show()
        os.fsync(self._descriptor)
        self._unsynced = 0
