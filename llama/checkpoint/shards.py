"""A state that lies in several files, one for each rank, and what another topology reads of it.

A file `rank-K.safetensors` holds, of each parameter of which rank K had a share, a master and two
moments: flat, from one element on to another of that parameter as one tensor-parallel rank had it.
Which elements they are is in `trainer.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama.engine import Piece
from llama.engine.state import MOMENTS
from llama.files.safetensors import open_safetensors
from llama.parallel.layers import share_of
from llama.parallel.mesh import TensorParallel

MASTER = "master"
KEYS = (MASTER, *MOMENTS)
"""What is kept of each element."""


def file_of(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def files_of(ranks: int) -> list[str]:
    return [file_of(rank) for rank in range(ranks)]


@dataclass(frozen=True)
class ShardedState:
    """Where the tensors are, and the counters."""

    folder: Path
    degree: int
    """Of tensor parallelism, when it was written."""
    shapes: dict[str, tuple[int, ...]]
    """Whole, unsharded."""
    dims: dict[str, int | None]
    """Along which tensor parallelism cuts each parameter."""
    files: dict[str, list[Piece]]
    counters: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        parameters = {
            name: {"shape": shape, "dim": self.dims[name]} for name, shape in self.shapes.items()
        }
        files = {
            file: [list(asdict(piece).values()) for piece in pieces]
            for file, pieces in self.files.items()
        }
        return {"tensor_parallel": self.degree, "parameters": parameters, "files": files}

    @classmethod
    def of_json(
        cls, folder: Path, document: Mapping[str, Any], counters: dict[str, Any]
    ) -> ShardedState:
        parameters = document["parameters"].items()
        return cls(
            folder,
            int(document["tensor_parallel"]),
            {name: tuple(map(int, parameter["shape"])) for name, parameter in parameters},
            {name: parameter["dim"] for name, parameter in parameters},
            {
                file: [Piece(str(name), int(s), int(a), int(b)) for name, s, a, b in pieces]
                for file, pieces in document["files"].items()
            },
            counters,
        )

    def problems(self, files: set[str]) -> list[str]:
        """What keeps the pieces in `files` from being each element of the state, once."""
        if self.files.keys() != files or self.degree < 1:
            return ["its files are of different checkpoints"]
        found: dict[tuple[str, int], list[tuple[int, int]]] = {
            (name, shard): [] for name in self.shapes for shard in range(self.shards(name))
        }
        for piece in (piece for pieces in self.files.values() for piece in pieces):
            if (piece.name, piece.shard) not in found:
                return [f"{piece.name}: a piece of no parameter"]
            found[piece.name, piece.shard].append((piece.start, piece.end))
        for (name, shard), ranges in found.items():
            at = 0
            for start, end in sorted(ranges):
                if start != at or end <= start:
                    return [f"{name}: its pieces leave a gap or overlap at element {at}"]
                at = end
            if at != prod(self.share_shape(name)):
                return [f"{name}: shard {shard} is not all there"]
        return []

    def shards(self, name: str) -> int:
        return 1 if self.dims[name] is None else self.degree

    def share_shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter on one tensor-parallel rank; the last share may be rounded up."""
        dim, shape = self.dims[name], list(self.shapes[name])
        if dim is not None:
            shape[dim] = -(-shape[dim] // self.degree)
        return tuple(shape)


class ShardReader:
    """A state as an engine takes it, at any topology. One parameter is in memory at a time."""

    def __init__(
        self, state: ShardedState, parameters: Mapping[str, nn.Parameter], tp: TensorParallel
    ) -> None:
        self._state = state
        self._parameters = parameters
        self._tp = tp
        self._open = cache(lambda file: open_safetensors(state.folder / file))

    def require_files(self) -> None:
        """Raise `UserError` where this rank does not see a file that it may need."""
        for file in self._state.files:
            self._open(file)

    def master(self, name: str) -> torch.Tensor:
        state = self._state
        if (shard := self._same_share(name)) is not None:
            shape = state.share_shape(name)
            return self._flat(name, shard, MASTER, 0, prod(shape)).view(shape)
        return self._cut_anew(name, MASTER)

    def moment(self, name: str, key: str, start: int, end: int) -> torch.Tensor:
        if (shard := self._same_share(name)) is not None:
            return self._flat(name, shard, key, start, end)
        return self._cut_anew(name, key).flatten()[start:end]

    def _same_share(self, name: str) -> int | None:
        """Which of the shares that were written is this rank's; None where they were others."""
        if self._state.dims[name] is None:
            return 0
        return self._tp.rank if self._state.degree == self._tp.size else None

    def _cut_anew(self, name: str, key: str) -> torch.Tensor:
        """This rank's share, of all those that were written."""
        state = self._state
        shape, dim = state.share_shape(name), state.dims[name]
        assert dim is not None
        shares = [
            self._flat(name, shard, key, 0, prod(shape)).view(shape)
            for shard in range(state.degree)
        ]
        whole = torch.cat(shares, dim).narrow(dim, 0, state.shapes[name][dim])
        return share_of(whole, self._parameters[name], self._tp)

    def _flat(self, name: str, shard: int, key: str, start: int, end: int) -> torch.Tensor:
        """Elements `[start, end)` of what one tensor-parallel rank had."""
        found = torch.empty(end - start)
        for file, piece in self._pieces(name, shard):
            first, last = max(start, piece.start), min(end, piece.end)
            if first < last:
                stored = self._open(file).get_slice(f"{name}.{key}")
                found[first - start : last - start] = stored[
                    first - piece.start : last - piece.start
                ]
        return found

    def _pieces(self, name: str, shard: int) -> Iterator[tuple[str, Piece]]:
        for file, pieces in self._state.files.items():
            for piece in pieces:
                if (piece.name, piece.shard) == (name, shard):
                    yield file, piece
