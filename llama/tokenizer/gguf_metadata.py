"""Reads the metadata of a GGUF file, and nothing of its tensors.

The package `gguf` maps every string of the vocabulary to an array and takes seconds; this takes
a tenth of one, and no length that a malformed header declares is believed beyond the file's end.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.tokenizer.files import refused, require_file

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""GGUF value type to `struct` letter; all little-endian."""
STRING, ARRAY = 8, 9


def read_metadata(path: Path) -> dict[str, Any]:
    """Every key and value in the header of `path`. Raises UserError if it is not GGUF 2 or 3."""
    require_file(path, "a GGUF file")
    with refused(path, "is not a complete GGUF file; download it again"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            magic, version, _tensors, count = struct.unpack_from("<4sIQQ", data)
            if magic != b"GGUF" or version not in (2, 3):
                raise UserError(f"{path}: is not a little-endian GGUF file of version 2 or 3")
            cursor = _Cursor(data, 24)
            return {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(count)}


class _Cursor:
    """A place in the file, moved on by each read; reading past the end raises."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self._at = at

    def scalar(self, letter: str) -> Any:
        return self._numbers(letter, 1)[0]

    def string(self) -> str:
        return self._bytes(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = self.scalar("I"), self.scalar("Q")
            if inner in SCALARS:
                return list(self._numbers(SCALARS[inner], length))
            return [self.value(inner) for _ in range(length)]
        return self.scalar(SCALARS[kind])

    def _numbers(self, letter: str, length: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{length}{letter}", self._bytes(length * struct.calcsize(letter)))

    def _bytes(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise EOFError("it ends within its header")
        self._at += length
        return self._data[self._at - length : self._at]
