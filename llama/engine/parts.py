"""A state that is too large to be gathered: what each rank keeps of it, a parameter at a time.

Under `--method full` the masters and moments of 7B are 81 GB. No rank holds them all, so none may
ask for them all: a rank hands out its own elements, compares by checksums, and joins one parameter
where a whole one is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llama.engine.optimizer_state import OptimizerState
from llama.engine.zero3 import gathered
from llama.files import life
from llama.parallel.layers import joined, shard_dim
from llama.parallel.mesh import Mesh
from llama.parallel.shares import own_values

_CHUNK = 1 << 22
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Piece:
    """Elements `[start, end)` of a parameter of one tensor-parallel rank, laid out flat."""

    name: str
    shard: int
    """Which rank of the tensor-parallel group; 0 where all have the same."""
    start: int
    end: int


class Parts:
    """The state of `trainable` as this rank has it."""

    def __init__(
        self,
        trainable: Mapping[str, nn.Parameter],
        state: OptimizerState,
        mesh: Mesh,
        device: torch.device,
    ) -> None:
        self._trainable = trainable
        self._state = state
        self._mesh = mesh
        self._device = device

    # What a checkpoint is made of

    def pieces(self) -> list[Piece]:
        """What is this rank's to save. Together the ranks' pieces are the state, each element of it
        once: of what several ranks hold alike, each saves a part."""
        tp = self._mesh.tensor_parallel
        found = []
        for name, parameter in self._trainable.items():
            start, end = self._own_range(parameter)
            is_copy = shard_dim(parameter) is None and tp.rank > 0
            if start < end and not is_copy:
                shard = 0 if shard_dim(parameter) is None else tp.rank
                found.append(Piece(name, shard, start, end))
        return found

    def _own_range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Of one tensor-parallel rank's parameter, what each data-parallel rank has for its own."""
        if self._state.stage:
            return self._state.own_range(parameter)
        size, ranks = parameter.numel(), self._mesh.data_parallel_size
        length = -(-size // ranks)
        start = min(length * self._mesh.data_parallel_rank, size)
        return start, min(start + length, size)

    def values(self, piece: Piece, key: str | None = None) -> torch.Tensor:
        """The master (no key) or a moment of one of `pieces`: flat, float32, on the CPU."""
        return self._own(piece.name, key).cpu()

    def _own(self, name: str, key: str | None = None) -> torch.Tensor:
        parameter = self._trainable[name]
        held, _ = self._state.own_range(parameter)
        start, end = self._own_range(parameter)
        return self._state.own(parameter, key)[start - held : end - held]

    def share_shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter on one tensor-parallel rank, whatever ZeRO has done to it."""
        parameter: Any = self._trainable[name]
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def shard_dims(self) -> dict[str, int | None]:
        """Name to the dimension along which tensor parallelism cuts the parameter."""
        return {name: shard_dim(parameter) for name, parameter in self._trainable.items()}

    # One parameter

    def whole(self, name: str) -> torch.Tensor:
        """The parameter as the model computes with it, unsharded. Every rank must call it."""
        parameter = self._trainable[name]
        with gathered(parameter):
            value = parameter.detach()
            value = value.clone() if hasattr(parameter, "ds_tensor") else value
        return joined(value, parameter, self._mesh.tensor_parallel)

    # What ranks tell one another

    def checksums(self) -> dict[str, torch.Tensor]:
        """Of each parameter's masters, a number that another value changes. Ranks that share a
        parameter have the same, so that what changed on one has changed. Every rank must call
        it."""
        names = list(self._trainable)
        sums = torch.stack([checksum(self._own(name)).to(self._device) for name in names])
        return dict(zip(names, self.over_ranks(sums, dist.ReduceOp.SUM), strict=True))

    def norms(self) -> dict[str, torch.Tensor]:
        """Of each parameter, its masters' norm, a scalar. Every rank must call it."""
        names = list(self._trainable)
        squares = torch.stack(
            [self._own(name).double().square().sum().to(self._device) for name in names]
        )
        dist.all_reduce(squares, group=self._mesh.data_parallel_group)
        tp = self._mesh.tensor_parallel
        whole = squares.clone()
        tp.all_reduce_(whole)
        cut = torch.tensor(
            [dim is not None for dim in self.shard_dims().values()], device=self._device
        )
        return dict(zip(names, torch.where(cut, whole, squares).sqrt().float().cpu(), strict=True))

    def over_ranks(self, values: torch.Tensor, op: Any) -> torch.Tensor:
        """`values`, one for each parameter, reduced over the ranks that have to do with the same
        elements: copies, and ZeRO's shares. An embedding's shards count as one, for a step may
        have no token of one of them. Every rank must call it."""
        values = values.to(self._device)
        dist.all_reduce(values, op=op, group=self._mesh.data_parallel_group)
        of_all = values.clone()
        self._mesh.tensor_parallel.all_reduce_(of_all, op)
        by_token = torch.tensor(
            [hasattr(parameter, "real_size") for parameter in self._trainable.values()],
            device=self._device,
        )
        return torch.where(by_token, of_all, values)

    def seen_anywhere(self, flags: torch.Tensor) -> torch.Tensor:
        """`flags`, one for each parameter, true where any rank that has to do with the same
        elements has it so: with fewer rows than ranks some see nothing of the data. Every rank
        must call it."""
        return self.over_ranks(flags.int(), dist.ReduceOp.MAX).bool()

    def replica_problems(self) -> list[str]:
        """One line for each parameter that differs between ranks that should compute with the same,
        by checksum. Every rank must call it."""
        own = [int(checksum(own_values(p))) for p in self._trainable.values()]
        found: list[Any] = [None] * self._mesh.world_size
        dist.all_gather_object(found, own)
        problems = []
        for index, (name, parameter) in enumerate(self._trainable.items()):
            for rank, other in enumerate(found):
                first = self._first_alike(rank, parameter)
                if other[index] != found[first][index]:
                    problems.append(f"{name} differs between ranks {first} and {rank}")
                    break
        return problems

    def _first_alike(self, rank: int, parameter: nn.Parameter) -> int:
        """The lowest rank that holds what `rank` does."""
        degree = self._mesh.tensor_parallel.size
        shard = 0 if shard_dim(parameter) is None else rank % degree
        if self._state.stage == 3:  # copies hold a share each
            return rank - rank % degree + shard
        return shard


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """A sum, modulo 2**64, of the bits of each element times an odd number of its place: another
    value of any one element gives another sum, and so do two that change places. An int64 scalar,
    where `tensor` is."""
    flat = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        life.show()
        bits = flat[start : start + _CHUNK].long()
        place = torch.arange(start, start + bits.numel(), device=flat.device)
        total += (bits * (2 * place + 1)).sum()
    return total
