"""Sums over the ranks that share a model, for who reads them next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist

from llama.parallel.peers import peers_of
from llama.parallel.shown import TURNS, Shown

ROWS = 8192
"""That are summed at once where what is summed is read from the others' memory: room for so many is
taken."""
PART, WHOLE = 1024, 256
"""Where some of these are copied from another rank's memory while the others are still made: the
fewest rows, and what their number is a multiple of."""
AS_LONG = 2048
"""Inputs of a product that takes as long as a copy of its result does: 680 TFLOP/s in bf16 beside
330 GB/s, as measured on H200s."""

Shares = tuple[torch.Tensor, ...]
Read = Callable[[slice, Shares], object]
"""Takes some rows of a sum, of the shares that these are the sum of."""


@dataclass(frozen=True)
class Finish:
    """What is left to do for a share."""

    make: Callable[[slice], object]
    """Makes some rows what they are to be, by a product."""
    inputs: int
    """Of the product, for each element."""


TWO_BY_TWO = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}
"""How shares that are read are put together."""


def reads_shares(ranks: int) -> bool:
    """Whether so many GPUs of a host read one another's shares: more would move more bytes so than
    an all-reduce does."""
    return ranks == 2


def room_bytes(width: int, itemsize: int) -> int:
    """Of a rank's rooms, for rows of `width` elements: of those that others read, and of the one
    for what is copied from them."""
    return (TURNS + 1) * ROWS * width * itemsize


def parts_of(rows: slice, inputs: int) -> list[slice]:
    """`rows` in two parts, of which the first is copied in the time in which the second is made, by
    products of so many `inputs`; or whole, where they are few. More parts were no faster."""
    number = rows.stop - rows.start
    second = WHOLE * round(number / (1.0 + max(1.0, inputs / AS_LONG)) / WHOLE)
    if min(second, number - second) < PART:
        return [rows]
    return [slice(rows.start, rows.stop - second), slice(rows.stop - second, rows.stop)]


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
            self._shown = Shown(peers, ROWS * width * dtype.itemsize)

    @property
    def are_read(self) -> bool:
        """Whether ranks read one another's shares; else there is a collective for each sum."""
        return self._shown is not None

    def place(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Where a product of that shape is best left to be summed; None: wherever."""
        if self._shown is None or rows * width * dtype.itemsize > self._shown.nbytes:
            return None
        return self._shown.place(torch.Size((rows, width)), dtype)

    def read(self, share: torch.Tensor, read: Read, finish: Finish | None = None) -> None:
        """Have `read` take the sum over the ranks of `share`, whose dimension 0 is the rows: of
        some rows after others, until it had all. `share` is given up: it may lie in a `place`, of
        which there is one at a time. With `finish` its rows are not there yet: then some are on
        their way between ranks while it makes the next."""
        if self._shown is None:
            if finish is not None:
                finish.make(slice(0, len(share)))
            if self._group is not None:
                dist.all_reduce(share, group=self._group)
            read(slice(0, len(share)), (share,))
            return
        each = max(1, self._shown.nbytes // max(1, share[:1].nbytes))
        for start in range(0, len(share), each):
            rows = slice(start, min(start + each, len(share)))
            parts = [rows] if finish is None else parts_of(rows, finish.inputs)
            if len(parts) > 1 and finish is not None:
                self._read_in_parts(share, parts, read, finish)
                continue
            if finish is not None:
                finish.make(rows)
            read(rows, self._shown.shares(self._left(share[rows])))

    def _read_in_parts(
        self, share: torch.Tensor, parts: Sequence[slice], read: Read, finish: Finish
    ) -> None:
        """As `read`, of rows for which there is room."""
        assert self._shown is not None
        brought = []
        for rows in parts:
            finish.make(rows)
            first = (rows.start - parts[0].start) * share[:1].nbytes
            brought.append(self._shown.brought(self._left(share[rows], first), first))
        self._shown.turn()
        for rows, (begun, shares) in zip(parts, brought, strict=True):
            begun.wait()
            read(rows, shares)

    def all_reduce_(self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType) -> None:
        """Reduce `tensor` in its place."""
        if self._group is None:
            return
        if op not in TWO_BY_TWO or tensor.device != self._device:
            dist.all_reduce(tensor, op=op, group=self._group)
            return

        flat = tensor.reshape(-1)  # the tensor's own memory, or a copy where that is not possible

        def read(rows: slice, shares: Shares) -> None:
            flat[rows] = reduce(TWO_BY_TWO[op], shares)

        self.read(flat, read)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))

    def every(self, x: torch.Tensor) -> torch.Tensor:
        """The `x` of each rank, of which there are a few numbers a row: `[ranks, *x.shape]`."""
        if self._group is None:
            return x.unsqueeze(0)
        if x.device == self._device:
            every = x.new_empty((self._group.size(), *x.shape))

            def read(rows: slice, shares: Shares) -> None:
                torch.stack(shares, out=every[:, rows])

            self.read(x, read)
            return every
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

    def _left(self, share: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`share` where it is to lie, from the byte `first` of a room on."""
        assert self._shown is not None
        place = self._shown.place(share.shape, share.dtype, first)
        if place.data_ptr() != share.data_ptr():
            place.copy_(share)
        return place
