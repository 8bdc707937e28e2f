"""Sums over the GPUs of one host of which each reads what the others leave.

An all-reduce moves what is summed by kernels of its own, and who reads the sum reads it again. Here
each rank leaves its share where the others can read it, and the kernel that wants the sum reads all
shares, one of them over the link. Between two ranks that moves as many bytes as an all-reduce does;
between more it moves more.
"""

from __future__ import annotations

from datetime import timedelta

import torch

from llama.parallel.peers import Peers

TURNS = 2
"""Rooms that take turns: what is left in one may be read until every rank has left something in the
next, and so nobody writes to it before."""
WAIT = timedelta(hours=2)
"""For another rank, after which the device fails: as long as ranks wait for one another's files."""


class Shown:
    """Room of `nbytes` in which each of `peers` leaves what is to be summed next. Every rank must
    make it, and use it for sums of the same sizes in the same order."""

    def __init__(self, peers: Peers, nbytes: int) -> None:
        self.nbytes = nbytes
        self._peers = peers
        self._rooms = [peers.shared(peers.zeros(nbytes)) for _ in range(TURNS)]
        self._turn = 0

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Where this rank leaves its next share."""
        return self._in_room(self._peers.rank, torch.Size(shape), dtype)

    def shares(self, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What every rank has left, in their order, once all have: `own`, which `place` gave, among
        it. To be read by what is computed before the next call but one."""
        self.settle()
        every = range(self._peers.count)
        found = tuple(self._in_room(rank, own.shape, own.dtype) for rank in every)
        self._turn = (self._turn + 1) % TURNS
        return found

    def settle(self) -> None:
        """What is computed from here on comes after all that any rank has read so far."""
        self._peers.meet(self._rooms[self._turn], WAIT)

    def begin_anew(self) -> None:
        """Have the first room be next. Every rank must call it, after `settle` with nothing read
        since: so that ranks that broke a recording off at different places use the same one."""
        self._turn = 0

    def _in_room(self, rank: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        size = shape.numel() * dtype.itemsize
        return self._rooms[self._turn].of_ranks[rank][:size].view(dtype).view(shape)
