"""Sums over the ranks that share a model, for who reads them next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
import torch.distributed as dist

from llama.parallel.peers import peers_of
from llama.parallel.shown import TURNS, Shown

ROWS = 8192
"""That are summed at once where what is summed is read from the others' memory: room for so many is
taken."""
BESIDE = 16
"""What is summed beside that has this part of its bytes at most: room for so many is taken too."""
PART, MOST = 1024, 4
"""Where some of these are copied from another rank's memory while the others are still made: the
fewest rows of a part, and the most parts."""
TILE = 128, 256
"""Rows and columns of a product that a multiprocessor makes at a time."""
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
    for what is copied from them; and the same for what is summed beside."""
    each = ROWS * width * itemsize
    return (TURNS + 1) * (each + each // BESIDE)


def rows_at_once(width: int, multiprocessors: int) -> int:
    """Of a product with so many outputs, the rows whose tiles a GPU has all in work together: for
    fewer it takes as long."""
    rows, columns = TILE
    return rows * max(1, multiprocessors // -(-width // columns))


def parts_of(rows: slice, inputs: int, at_once: int) -> list[slice]:
    """`rows` in parts of which each is on its way while the next is made, by products of so many
    `inputs`, of whole `rows_at_once` but for the first; or all in one, where they are few. Where a
    product takes longer than its copy, there are two parts, so that the first is copied just while
    the second is made; else equal ones, since the last part's copy is waited for."""
    number, longer = rows.stop - rows.start, inputs / AS_LONG
    if longer > 1.0:
        count, each = 2, at_once * round(number / (1.0 + longer) / at_once)
    else:
        each = at_once * max(-(-PART // at_once), round(number / MOST / at_once))
        count = min(MOST, number // each)
    if count < 2 or min(each, number - each * (count - 1)) < PART:
        return [rows]
    ends = [rows.stop - each * left for left in reversed(range(count))]
    return [slice(start, stop) for start, stop in pairwise([rows.start, *ends])]


class Sums:
    """Over the ranks of `group`; None: this rank alone. Every rank must use it alike."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._shown: Shown | None = None
        self._beside: Shown | None = None
        self._at_once = PART
        self._device: torch.device | None = None

    def show(self, device: torch.device, width: int, dtype: torch.dtype) -> None:
        """From now on have each of two `device`s that reach one another read the other's share, for
        activations of `width` elements of `dtype` a row. Every rank must call it."""
        if self._group is None or self.are_read or not reads_shares(self._group.size()):
            return
        if (peers := peers_of(self._group, device)) is not None:
            self._device = device
            nbytes = ROWS * width * dtype.itemsize
            self._shown, self._beside = Shown(peers, nbytes), Shown(peers, nbytes // BESIDE)
            self._at_once = rows_at_once(width, peers.multiprocessors)

    @property
    def alone(self) -> bool:
        """Whether there is nobody to sum with."""
        return self._group is None

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
            parts = [rows] if finish is None else parts_of(rows, finish.inputs, self._at_once)
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

    def has_room_beside(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether `begin` takes the sum of `tensors` beside others. Where it does not, what it
        gives must not be called between `place` and `read`."""
        return self._beside is None or sum(x.nbytes for x in tensors) <= self._beside.nbytes

    def begin(self, tensors: Sequence[torch.Tensor]) -> Callable[[], Shares]:
        """Begin to sum `tensors`, of one type, over the ranks: where shares are read and there is
        room, beside what is computed from now on, other sums among it. Gives what is to be called,
        before the next is begun, for the shares of their sum, one-dimensional, of all tensors one
        after the other."""
        pieces = [tensor.flatten() for tensor in tensors]
        if self._beside is None or not self.has_room_beside(tensors):

            def taken() -> Shares:
                self.all_reduce_(whole := torch.cat(pieces))
                return (whole,)

            return taken

        size = torch.Size((sum(len(piece) for piece in pieces),))
        place = self._beside.place(size, pieces[0].dtype)
        torch.cat(pieces, out=place)
        begun, shares = self._beside.brought(place, 0)
        self._beside.turn()

        def brought() -> Shares:
            begun.wait()
            return shares

        return brought

    def all_reduce_(
        self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> None:
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
        for shown in self._rooms():
            shown.settle()

    def forget(self) -> None:
        """Begin with the first room, wherever a recording has broken off on this rank."""
        for shown in self._rooms():
            shown.begin_anew()

    def held(self) -> None:
        """The rooms stay for as long as this does."""

    def _rooms(self) -> list[Shown]:
        return [shown for shown in (self._shown, self._beside) if shown is not None]

    def _left(self, share: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`share` where it is to lie, from the byte `first` of a room on."""
        assert self._shown is not None
        place = self._shown.place(share.shape, share.dtype, first)
        if place.data_ptr() != share.data_ptr():
            place.copy_(share)
        return place
