"""Sums over tensor-parallel ranks of what products give, for who reads them next."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llama.parallel.mesh import SINGLE, TensorParallel
from llama.parallel.peers import peers_of
from llama.parallel.shown import TURNS, Shown

ROWS = 8192
"""Rows of a part, where what is summed is read from the others' memory: room for so many is taken,
and more are summed part by part."""

Shares = tuple[torch.Tensor, ...]
Read = Callable[[slice, Shares], tuple[torch.Tensor, ...]]
"""What is made of some rows, of the shares that these rows are the sum of: tensors with as many."""


def reads_shares(tensor_parallel: int) -> bool:
    """Whether so many GPUs of a host read one another's shares: more would move more bytes so than
    an all-reduce does."""
    return tensor_parallel == 2


def room_bytes(width: int, itemsize: int) -> int:
    """Of a rank's rooms, for rows of `width` elements."""
    return TURNS * ROWS * width * itemsize


class Sums:
    """Over the ranks of `tp`, of activations `[T, width]` of `dtype` on `device`. Each of two GPUs
    that reach one another reads the other's share; else there is an all-reduce. Every rank must
    make it, and use it alike."""

    def __init__(
        self,
        tp: TensorParallel = SINGLE,
        device: torch.device | None = None,
        width: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._tp = tp
        self._shown: Shown | None = None
        if tp.group is None or device is None or not reads_shares(tp.size):
            return
        if (peers := peers_of(tp.group, device)) is not None:
            self._shown = Shown(peers, room_bytes(width, dtype.itemsize) // TURNS)

    def place(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Where a product of that shape is best left to be summed; None: wherever."""
        fits = self._shown is not None and rows * width * dtype.itemsize <= self._shown.nbytes
        return self._shown.place((rows, width), dtype) if self._shown and fits else None

    def read(self, share: torch.Tensor, read: Read) -> tuple[torch.Tensor, ...]:
        """What `read` makes of the sum over the ranks of `share`, whose dimension 0 is the rows.
        `share` is given up: it may lie in a `place`, of which there is one at a time."""
        if self._shown is None:
            self._tp.all_reduce_(share)
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

    def _left(self, share: torch.Tensor) -> Shares:
        """The shares of all ranks, once `share` lies where it is to."""
        assert self._shown is not None
        place = self._shown.place(tuple(share.shape), share.dtype)
        if place.data_ptr() != share.data_ptr():
            place.copy_(share)
        return self._shown.shares(place)
