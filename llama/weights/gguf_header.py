"""The header of a GGUF file: metadata and where each tensor lies.

The package `gguf` reads it too, but builds several objects per element of every array, whatever
length the file declares. Here arrays are stepped over, and every count is held against the size
of the file. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
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

    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]


def read_header(path: Path) -> GGUFHeader:
    """Read the header of `path`. ValueError says what is wrong with it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        try:
            return _read(cursor)
        except (struct.error, IndexError, OverflowError):
            raise ValueError(
                f"the header runs past the end of the file ({len(data)} bytes)"
            ) from None


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
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
        return self.data[start : self.at].decode("utf-8")


def _read(cursor: _Cursor) -> GGUFHeader:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    cursor.skip(4)
    version = cursor.count("I")
    if version not in (2, 3):
        raise ValueError(f"version {version} (or the other byte order) is not read, only 2 and 3")
    tensor_count, field_count = cursor.count(), cursor.count()
    metadata: dict[str, object] = {}
    for _ in range(field_count):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the field {key} is there twice")
        metadata[key] = _field(cursor)
    declared = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError("general.alignment is not a power of two")
    base = -(-cursor.at // alignment) * alignment
    return GGUFHeader(metadata, _place(declared, base, len(cursor.data)))


def _field(cursor: _Cursor) -> object:
    kind = cursor.count("I")
    if kind in _SCALARS:
        return cursor.value(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise ValueError(f"unknown type of field: {kind}")
    element, length = cursor.count("I"), cursor.count()
    if element in _SCALARS:
        cursor.skip(length * struct.calcsize("<" + _SCALARS[element]))
    elif element == _STRING:
        for _ in range(length):
            cursor.skip(cursor.count())
    else:
        raise ValueError(f"unknown type of array: {element}")
    return f"an array of {length}"


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
