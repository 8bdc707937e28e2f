"""The lines of a run's own files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llama.files.atomic import write_file
from llama.files.json_text import json_text


class JSONLines:
    """One line for each moment, flushed at once: a killed run keeps what it had reached."""

    def __init__(self, path: Path, lines: list[str] | None = None) -> None:
        """`lines` are those that the file begins with, a byte that is no text as a surrogate."""
        self.lines = len(lines or [])
        write_file(path, "".join(lines or []).encode(errors="surrogateescape"))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json_text({"step": step, **values}) + "\n")
        self.lines += 1

    def sync(self) -> None:
        """Have all lines on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
