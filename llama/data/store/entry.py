"""Arrays in a folder, with figures beside them: written as one, checked whole before they are read.

index.json      the figures, each array's type, bytes and SHA-256, and the SHA-256 of all this
NAME.bin        the numbers of the array NAME, in little-endian order
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama.data.flat import Array
from llama.files.inputs import sha256_of

INDEX = "index.json"


class DamagedError(Exception):
    """What is in the folder is not what was written there."""


class NotKeptError(Exception):
    """The disk did not take what was written; says why."""


@dataclass
class Entry:
    """Arrays of one data set, or of how one is packed."""

    facts: dict[str, Any]
    arrays: dict[str, Array]
    held: Any = field(default=None, repr=False)
    """What keeps the folder from being removed while this lives."""


class Sink:
    """Takes arrays part by part, into files of `folder` or, without one, into memory."""

    def __init__(self, types: Mapping[str, str], folder: Path | None = None) -> None:
        self._folder = folder
        self._types = dict(types)
        self._hashes = {name: hashlib.sha256() for name in types}
        make = self._in_memory if folder is None else self._in_folder
        self._files: dict[str, BinaryIO] = {}
        for name in types:
            self._files[name] = make(name)

    def _in_memory(self, name: str) -> BinaryIO:
        return io.BytesIO()

    def _in_folder(self, name: str) -> BinaryIO:
        assert self._folder is not None
        return _kept(lambda: (self._folder_of() / f"{name}.bin").open("xb"))

    def _folder_of(self) -> Path:
        assert self._folder is not None
        return self._folder

    def add(self, arrays: Mapping[str, Array]) -> None:
        """More of each array. Raises NotKeptError."""
        for name, values in arrays.items():
            content = np.ascontiguousarray(values, self._types[name]).view(np.uint8).data
            self._hashes[name].update(content)
            file = self._files[name]
            _kept(lambda file=file, content=content: file.write(content))

    def so_far(self, name: str) -> Array:
        """All that has come of an array."""
        file = self._files[name]
        if isinstance(file, io.BytesIO):
            return np.frombuffer(file.getbuffer(), self._types[name])
        _kept(file.flush)
        return _mapped(Path(file.name), self._types[name])

    def finish(self, facts: dict[str, Any]) -> Entry:
        """All of it, with `facts`; in a folder it is then on the disk. Raises NotKeptError."""
        if self._folder is None:
            return Entry(facts, {name: self.so_far(name) for name in self._types})
        index: dict[str, Any] = {"facts": facts, "arrays": {}}
        for name, file in self._files.items():
            size = file.tell()
            _kept(lambda file=file: _synced(file))
            digest = self._hashes[name].hexdigest()
            index["arrays"][name] = [self._types[name], size, digest]
        text = json.dumps(index)
        whole = json.dumps({"sha256": _digest(text), "index": text}).encode()
        _kept(lambda: _write(self._folder_of() / INDEX, whole))
        return Entry(
            facts, {n: _mapped(self._folder_of() / f"{n}.bin", t) for n, t in self._types.items()}
        )

    def close(self) -> None:
        """Let go of the files, finished or not."""
        for file in self._files.values():
            if not isinstance(file, io.BytesIO):
                file.close()


def read_entry(folder: Path) -> Entry | None:
    """The entry in `folder`, of which every byte is read and checked; None where there is none.
    Raises DamagedError."""
    try:
        text = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        if folder.exists():
            raise DamagedError("it has no index") from None
        return None
    except OSError as error:
        raise DamagedError(str(error.strerror)) from None
    try:
        whole = json.loads(text)
        if _digest(whole["index"]) != whole["sha256"]:
            raise DamagedError("its index was changed")
        index = json.loads(whole["index"])
        arrays: dict[str, Array] = {}
        for name, (dtype, size, digest) in index["arrays"].items():
            path = folder / f"{name}.bin"
            if path.stat().st_size != size:
                raise DamagedError(f"{path.name} has {path.stat().st_size:,} bytes of {size:,}")
            if sha256_of(path) != digest:
                raise DamagedError(f"{path.name} was changed")
            arrays[name] = _mapped(path, dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"it cannot be read: {error}") from None
    return Entry(index["facts"], arrays)


def _mapped(path: Path, dtype: str) -> Array:
    if not path.stat().st_size:  # The system maps no empty file.
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        _synced(file)


def _synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _kept(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except OSError as error:
        raise NotKeptError(error.strerror or str(error)) from error
