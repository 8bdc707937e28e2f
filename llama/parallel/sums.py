"""Sums over the ranks that share a model, for who reads them next."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.distributed as dist

from llama.parallel.peers import peers_of
from llama.parallel.shown import TURNS, Shown

ROWS = 8192
"""Rows of a part, where what is summed is read from the others' memory: room for so many is taken,
and more are summed part by part."""

Shares = tuple[torch.Tensor, ...]
Read = Callable[[slice, Shares], tuple[torch.Tensor, ...]]
"""What is made of some rows, of the shares that these rows are the sum of: tensors with as many."""
TWO_BY_TWO = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}
"""How shares that are read are put together."""


def reads_shares(ranks: int) -> bool:
    """Whether so many GPUs of a host read one another's shares: more would move more bytes so than
    an all-reduce does."""
    return ranks == 2


def room_bytes(width: int, itemsize: int) -> int:
    """Of a rank's rooms, for rows of `width` elements."""
    return TURNS * ROWS * width * itemsize


class Sums:
    """Over the ranks of `group`; None: this rank alone. Every rank must use it alike."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._shown: Shown | None = None
        self._device: torch.device | None = None

    def show(self, device: torch.device, width: int, dtype: torch.dtype) -> None:
        """From now on have each of two `device`s that reach one another read the other's share, for
        activations of `width` elements of `dtype` a row. Every rank must call it."""
        if self._group is None or self.are_read or not reads_shares(self._group.size()):
            return
        if (peers := peers_of(self._group, device)) is not None:
            self._device = device
            self._shown = Shown(peers, room_bytes(width, dtype.itemsize) // TURNS)

    @property
    def are_read(self) -> bool:
        """Whether ranks read one another's shares; else there is a collective for each sum."""
        return self._shown is not None

    def place(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Where a product of that shape is best left to be summed; None: wherever."""
        if self._shown is None or rows * width * dtype.itemsize > self._shown.nbytes:
            return None
        return self._shown.place((rows, width), dtype)

    def read(self, share: torch.Tensor, read: Read) -> tuple[torch.Tensor, ...]:
        """What `read` makes of the sum over the ranks of `share`, whose dimension 0 is the rows.
        `share` is given up: it may lie in a `place`, of which there is one at a time."""
        if self._shown is None:
            if self._group is not None:
                dist.all_reduce(share, group=self._group)
            return read(slice(None), (share,))
        each = max(1, self._shown.nbytes // max(1, share[:1].nbytes))
        if len(share) <= each:
            return read(slice(None), self._left(share))
        found: tuple[torch.Tensor, ...] = ()
        for start in range(0, len(share), each):
            rows = slice(start, start + each)
            made = read(rows, self._left(share[rows]))
            if not found:
                found = tuple(x.new_empty((len(share), *x.shape[1:])) for x in made)
            for whole, part in zip(found, made, strict=True):
                whole[rows].copy_(part)
        return found

    def all_reduce_(self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType) -> None:
        """Reduce `tensor` in its place."""
        if self._group is None:
            return
        if op not in TWO_BY_TWO or tensor.device != self._device:
            dist.all_reduce(tensor, op=op, group=self._group)
            return

        def read(_: slice, shares: Shares) -> tuple[torch.Tensor]:
            return (reduce(TWO_BY_TWO[op], shares),)

        (found,) = self.read(tensor.contiguous().view(-1), read)
        tensor.copy_(found.view(tensor.shape))

    def every(self, x: torch.Tensor) -> torch.Tensor:
        """The `x` of each rank, of which there are a few numbers a row: `[ranks, *x.shape]`."""
        if self._group is None:
            return x.unsqueeze(0)
        if x.device == self._device:
            (found,) = self.read(x, lambda _, shares: (torch.stack(shares, dim=1),))
            return found.transpose(0, 1)
        found = [torch.empty_like(x) for _ in range(self._group.size())]
        dist.all_gather(found, x.contiguous(), group=self._group)
        return torch.stack(found)

    # As what has work of a pass that is recorded (`llama/fused/recorded.py`)

    def settle(self) -> None:
        """No rank reads any more what this one has left: what is computed from here on may leave
        something in any room."""
        if self._shown is not None:
            self._shown.settle()

    def forget(self) -> None:
        """Begin with the first room, wherever a recording has broken off on this rank."""
        if self._shown is not None:
            self._shown.begin_anew()

    def held(self) -> None:
        """The rooms stay for as long as this does."""

    def _left(self, share: torch.Tensor) -> Shares:
        """The shares of all ranks, once `share` lies where it is to."""
        assert self._shown is not None
        place = self._shown.place(tuple(share.shape), share.dtype)
        if place.data_ptr() != share.data_ptr():
            place.copy_(share)
        return self._shown.shares(place)
