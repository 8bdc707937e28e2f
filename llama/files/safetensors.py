"""Safetensors files: opening one that somebody else wrote, and writing one a tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llama.errors import UserError
from llama.files.inputs import filled_file_problem
from llama.files.json_text import json_text
from llama.files.kinds import SAFETENSORS
from llama.files.new_file import NewFile

FLOATS = ("F16", "BF16", "F32", "F64")
"""Its types of floating-point numbers."""


def open_safetensors(path: Path) -> Any:
    """The open file, no tensor read. safetensors checks that its header fits in the file, covers it
    without gap or overlap, and is at most 100 MB. Raises UserError."""
    if problem := filled_file_problem(path, (SAFETENSORS,)):
        raise UserError(problem)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: not a whole safetensors file: {reason[:200]}") from None


NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What a file calls the types that are written."""


class TensorFile:
    """A new safetensors file, of which no more than one tensor is in memory at a time. The format,
    as its authors have it: the length of a header in 8 bytes, the header in JSON, the tensors.

    Raises `OSError` as the system does."""

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Name, type and shape of each tensor, in the order in which they will come."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        self._to_come: list[tuple[str, torch.dtype, tuple[int, ...]]] = list(tensors)
        for name, dtype, shape in self._to_come:
            start, end = end, end + prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json_text(header).encode()
        text += b" " * (-len(text) % 8)
        self._to_come.reverse()
        self._file = NewFile(path)
        self._write(len(text).to_bytes(8, "little") + text)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor."""
        assert self._to_come.pop() == (name, tensor.dtype, tuple(tensor.shape)), name
        flat = tensor.detach().cpu().contiguous().flatten()
        self._write(flat.view(torch.uint8).numpy().data)

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)

    def finish(self) -> None:
        """Have all of it on the disk."""
        assert not self._to_come
        self._file.finish()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()


@dataclass(frozen=True)
class Written:
    """A file that is on the disk."""

    bytes: int
    sha256: str
    """Of what was given to be written."""


class HashedTensorFile(TensorFile):
    """One that knows what has gone into it."""

    def __init__(
        self, path: Path, tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]
    ) -> None:
        self._hash, self._bytes = hashlib.sha256(), 0
        super().__init__(path, tensors)

    def _write(self, content: bytes | memoryview) -> None:
        self._hash.update(content)
        self._bytes += len(content)
        super()._write(content)

    def written(self) -> Written:
        return Written(self._bytes, self._hash.hexdigest())
