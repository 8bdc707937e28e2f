"""The header of a GGUF file: metadata, and where each tensor lies.

The package `gguf` reads it too, but builds several objects per element of every array, whatever
length the file declares. Here every count is held against the size of the file and against what a
model can need. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_MAX_FIELDS, _MAX_TENSORS = 1 << 12, 1 << 16
_MAX_ELEMENTS = 1 << 22
"""Of an array: some times the largest vocabulary."""
_MAX_TEXT = 1 << 22
"""Bytes: some times the longest chat template."""
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: `shape` has rows first; `offset` counts bytes from the start of the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """`metadata` leaves the contents of arrays out."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_header(path: Path) -> GGUFHeader:
    """Read the header of `path`. ValueError says what is wrong with it."""
    with _cursor(path, keep_arrays=False) as cursor:
        tensor_count, metadata = _metadata(cursor)
        if tensor_count > _MAX_TENSORS:
            raise ValueError(f"it declares {tensor_count} tensors")
        declared = [_tensor_info(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError("general.alignment is not a power of two")
        base = -(-cursor.at // alignment) * alignment
        return GGUFHeader(metadata, _place(declared, base, len(cursor.data)))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of `path`, arrays as lists. ValueError says what is wrong with it."""
    with _cursor(path, keep_arrays=True) as cursor:
        return _metadata(cursor)[1]


@contextlib.contextmanager
def _cursor(path: Path, keep_arrays: bool) -> Iterator[_Cursor]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            yield _Cursor(data, keep_arrays)
        except (struct.error, IndexError, OverflowError):
            raise ValueError(
                f"the header runs past the end of the file ({len(data)} bytes)"
            ) from None


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap, keep_arrays: bool) -> None:
        self.data = data
        self.keep_arrays = keep_arrays
        self.at = 0

    def value(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def count(self, code: str = "Q") -> int:
        return int(self.value(code))

    def skip(self, length: int) -> None:
        if self.at + length > len(self.data):
            raise IndexError
        self.at += length

    def text(self) -> str:
        length = self.count()
        start = self.at
        self.skip(length)
        if length > _MAX_TEXT:
            raise ValueError(f"it holds a text of {length} bytes")
        return self.data[start : self.at].decode("utf-8")

    def array(self) -> Any:
        """The elements, or where they are not kept their number in words."""
        element, length = self.count("I"), self.count()
        if element not in _SCALARS and element != _STRING:
            raise ValueError(f"unknown type of array: {element}")
        if self.at + length > len(self.data):  # each takes a byte or more
            raise IndexError
        if length > _MAX_ELEMENTS:
            raise ValueError(f"it holds an array of {length}")
        start = self.at
        if element != _STRING:
            code = f"<{length}{_SCALARS[element]}"
            self.skip(struct.calcsize(code))
            if self.keep_arrays:
                return list(struct.unpack_from(code, self.data, start))
        elif self.keep_arrays:
            return [self.text() for _ in range(length)]
        else:
            for _ in range(length):
                self.skip(self.count())
        return f"an array of {length}"


def _metadata(cursor: _Cursor) -> tuple[int, dict[str, Any]]:
    """The declared number of tensors, and the fields."""
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    cursor.skip(4)
    version = cursor.count("I")
    if version not in (2, 3):
        raise ValueError(f"version {version} (or the other byte order) is not read, only 2 and 3")
    tensor_count, field_count = cursor.count(), cursor.count()
    if field_count > _MAX_FIELDS:
        raise ValueError(f"it declares {field_count} fields")
    metadata: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the field {key} is there twice")
        metadata[key] = _field(cursor)
    return tensor_count, metadata


def _field(cursor: _Cursor) -> Any:
    kind = cursor.count("I")
    if kind in _SCALARS:
        return cursor.value(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        return cursor.array()
    raise ValueError(f"unknown type of field: {kind}")


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name, n_dims = cursor.text(), cursor.count("I")
    if n_dims > _MAX_DIMS:
        raise ValueError(f"tensor {name} has {n_dims} dimensions")
    shape = tuple(reversed([cursor.count() for _ in range(n_dims)]))  # fastest first in the file
    try:
        kind = GGMLQuantizationType(cursor.count("I"))
    except ValueError as error:
        raise ValueError(f"tensor {name}: unknown type: {error}") from None
    return name, shape, kind, cursor.count()


def _place(
    declared: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]], base: int, size: int
) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in declared:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if name in tensors:
            raise ValueError(f"tensor {name} is there twice")
        if not shape or shape[-1] % block:
            raise ValueError(
                f"tensor {name}: rows of {list(shape)} are not whole {kind.name} blocks"
            )
        n_bytes = prod(shape) // block * block_bytes
        if base + offset + n_bytes > size:
            raise ValueError(
                f"tensor {name} ends at byte {base + offset + n_bytes}, the file at {size}: "
                "it is truncated"
            )
        tensors[name] = GGUFTensor(shape, kind, base + offset, n_bytes)
    return tensors
