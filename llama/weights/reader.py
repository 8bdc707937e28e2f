"""What every source of weights offers, and what those that read files share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from llama.files.inputs import sha256_of
from llama.model.config import ModelConfig
from llama.notes import note
from llama.weights import rotary

_FILES_AT_ONCE = 8
_SLOW_BYTES = 4 << 30
_AT_ONCE = 1 << 20
"""Elements of a weight, in `by_rows`; of longer rows it is one."""
SAMPLED_ROWS = 8
"""Of each matrix, in `sampled_hash`."""


class WeightReader(Protocol):
    """Weights by native name, in native layout, whole or a slice at a time."""

    config: ModelConfig
    files: list[Path]
    """The files that hold the sizes and the weights; empty for random ones."""

    def names(self) -> set[str]:
        """Native names of the weights it holds."""
        ...

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        """The tensor, or its slice `[start, start + length)` along `dim`, in the type it is stored
        in (float32 where stored quantised). It may be a view of the file: copy it before keeping
        or changing it. KeyError for a name it does not hold."""
        ...

    def place(self, name: str) -> str:
        """Where the tensor is kept, for a message: the file, or the folder of several."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what it reads; reads every byte of the files, once."""
        ...

    def sampled_hash(self) -> str:
        """What tells this model's weights from another's, in hex, without reading all of them; see
        `sampled_hash`."""
        ...


def slice_of(
    shape: tuple[int, ...], dim: int | None, start: int, length: int | None
) -> tuple[int, int]:
    """`(axis, length)` of the slice that `WeightReader.read` was asked for; by default the whole of
    the first axis, and all from `start` on."""
    axis = 0 if dim is None else dim
    length = shape[axis] - start if length is None else length
    assert 0 <= start and 0 <= length and start + length <= shape[axis], (shape, start, length)
    return axis, length


class FileReader(ABC):
    """A reader of files: bounds, rotary layout and fingerprint. A format adds `_stored`."""

    interleaved: bool
    """Whether the format keeps rotary pairs in adjacent rows."""

    def __init__(
        self, config: ModelConfig, shapes: dict[str, tuple[int, ...]], files: list[Path]
    ) -> None:
        self.config = config
        self.files = files
        self._shapes = shapes
        self._fingerprint: str | None = None

    @abstractmethod
    def _stored(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        """A slice along `dim`, laid out as the file has it."""

    def names(self) -> set[str]:
        return set(self._shapes)

    def place(self, name: str) -> str:
        weights = self.files[-1]  # the sizes' file goes first
        return str(weights if len(self.files) < 3 else weights.parent)

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        axis, length = slice_of(self._shapes[name], dim, start, length)
        if not (self.interleaved and rotary.is_rotary(name)):
            return self._stored(name, axis, start, length)
        head_dim = self.config.head_dim
        if axis == 0:
            return rotary.read_halves(
                lambda first, rows: self._stored(name, 0, first, rows), start, length, head_dim
            )
        return rotary.interleaved_to_halves(self._stored(name, axis, start, length), head_dim)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.files)
        return self._fingerprint

    def sampled_hash(self) -> str:
        return sampled_hash(self, self._shapes)


def sampled_hash(reader: WeightReader, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256, in hex, over every tensor's name and shape and some of its values: `SAMPLED_ROWS`
    rows of a matrix, spread from the first to the last, and all of a vector.

    The values are hashed as float32, in this project's layout and names. So a model has one hash
    in Hugging Face's layout, in Meta's, however it is sharded, and in GGUF, as long as the stored
    values are the same; a copy in a narrower type, or a quantised one, holds other values and has
    another. The sizes that no tensor shows, as the rotary base, are not in it.

    What it costs grows with the number of layers and the width, not with the file: 0.1 GB is read
    of a model of 70B, which has 140. What it cannot see: a matrix of which only rows between those
    were changed."""
    whole = hashlib.sha256()
    for name in sorted(shapes):
        shape = shapes[name]
        whole.update(f"{name} {list(shape)}\n".encode())
        rows = min(SAMPLED_ROWS, shape[0])
        if len(shape) == 1 or rows < 2:
            parts = [reader.read(name)]
        else:
            starts = (index * (shape[0] - 1) // (rows - 1) for index in range(rows))
            parts = [reader.read(name, 0, start, 1) for start in starts]
        for part in parts:
            whole.update(part.float().contiguous().numpy().tobytes())
    return whole.hexdigest()


def fingerprint_of(files: list[Path]) -> str:
    """SHA-256 over name, size and SHA-256 of each file, in order of name."""
    total = sum(file.stat().st_size for file in files)
    if total > _SLOW_BYTES:
        note(f"hashing {total / 2**30:.1f} GiB of model files")
    files = sorted(files, key=lambda file: file.name)
    whole = hashlib.sha256()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:  # both reading and hashing let others run
        for file, content in zip(files, pool.map(sha256_of, files), strict=True):
            whole.update(f"{file.name}\0{file.stat().st_size}\0{content}\n".encode())
    return whole.hexdigest()


def by_rows(
    reader: WeightReader, name: str, shape: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The weight `name`, of `shape`, some rows at a time: the number of the first, and they."""
    step = max(1, _AT_ONCE // prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, reader.read(name, 0, start, min(step, shape[0] - start))


def same_values(reader: FileReader, name: str, other: str, shape: Sequence[int]) -> bool:
    """Whether two matrices of `shape` are equal bit for bit. Different ones differ at once."""
    pairs = zip(by_rows(reader, name, shape), by_rows(reader, other, shape), strict=True)
    return all(
        ours.dtype == theirs.dtype and torch.equal(ours, theirs) for (_, ours), (_, theirs) in pairs
    )
