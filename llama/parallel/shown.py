"""Sums over the GPUs of one host of which each reads what the others leave.

An all-reduce moves what is summed by kernels of its own, and who reads the sum reads it again. Here
each rank leaves its share where the others can read it, and the kernel that wants the sum reads all
shares, one of them over the link. Between two ranks that moves as many bytes as an all-reduce does;
between more it moves more. While a kernel reads over the link little else is done; where there is
something to compute meanwhile, shares are brought by copies that take no multiprocessors.
"""

from __future__ import annotations

from datetime import timedelta

import torch

from llama.parallel.peers import Begun, Peers, Shared

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
        self._brought = {
            rank: torch.empty(nbytes, dtype=torch.uint8, device=peers.device)
            for rank in range(peers.count)
            if rank != peers.rank
        }
        """Room for what is brought of each other rank: read before the next is begun to be."""
        self._turn = 0

    def place(self, shape: torch.Size, dtype: torch.dtype, first: int = 0) -> torch.Tensor:
        """Where this rank leaves its next share, or a part of it that begins with the byte `first`
        of the room."""
        return _in_room(self._room.of_ranks[self._peers.rank], shape, dtype, first)

    def shares(self, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What every rank has left, in their order, once all have: `own`, which `place` gave, among
        it. To be read by what is computed before the next call but one."""
        self.settle()
        rooms = self._room.of_ranks
        self.turn()
        return tuple(_in_room(room, own.shape, own.dtype) for room in rooms)

    def brought(self, own: torch.Tensor, first: int) -> tuple[Begun, tuple[torch.Tensor, ...]]:
        """The same of a part of a share, which `place` gave with the same `first`: brought here
        beside what is computed from now on, to be read once that has been waited for, and by what
        is begun before the next sum is brought. Once all its parts are, comes a `turn`."""
        found = []
        with self._peers.aside(0):
            self._peers.meet(self._room, WAIT)
            met = self._peers.begun()
        with self._peers.aside(1):  # so that ranks meet for a part while the one before is copied
            met.wait()
            for rank, room in enumerate(self._room.of_ranks):
                part = own
                if rank != self._peers.rank:
                    part = _in_room(self._brought[rank], own.shape, own.dtype, first)
                    part.copy_(_in_room(room, own.shape, own.dtype, first))
                found.append(part)
            return self._peers.begun(), tuple(found)

    def turn(self) -> None:
        """The next share is left in another room."""
        self._turn = (self._turn + 1) % TURNS

    def settle(self) -> None:
        """What is computed from here on comes after all that any rank has read so far."""
        self._peers.meet(self._room, WAIT)

    def begin_anew(self) -> None:
        """Have the first room be next. Every rank must call it, after `settle` with nothing read
        since: so that ranks that broke a recording off at different places use the same one."""
        self._turn = 0

    @property
    def _room(self) -> Shared:
        return self._rooms[self._turn]


def _in_room(
    room: torch.Tensor, shape: torch.Size, dtype: torch.dtype, first: int = 0
) -> torch.Tensor:
    size = shape.numel() * dtype.itemsize
    return room[first : first + size].view(dtype).view(shape)
