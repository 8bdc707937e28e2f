"""Memory of the GPUs of one host that every rank of a group reads and writes as its own.

What goes from one GPU to another by a plain copy is moved by their copy engines. A collective is
moved by kernels, which take multiprocessors from what is computed beside them, and which each of
both waits for.
"""

from __future__ import annotations

import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

BOOT = Path("/proc/sys/kernel/random/boot_id")
PATIENCE_MS = 600_000
"""How long a GPU waits for what another one is to write, as long as NCCL does for a collective."""
PARTS = 2
"""Exchanges of a `PairSums` that may be under way at a time."""
RANKS_OF_PAIR = 2


ALIGNED = 256
"""Bytes: each tensor begins at a multiple of them, as kernels want it."""


def aligned(size: int) -> int:
    """`size` bytes, filled up."""
    return -(-size // ALIGNED) * ALIGNED


_outside = 0


def outside_bytes() -> int:
    """What `Peers` hold of this process's device, which torch's allocator does not count."""
    return _outside


def _count_outside(nbytes: int) -> None:
    global _outside
    _outside += nbytes


class Peers:
    """The ranks of `group`, of which each has `device`s that reach one another."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self.device = device
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self._aside = torch.cuda.Stream(device)

    def zeros(self, nbytes: int) -> torch.Tensor:
        """Room for `nbytes`, uint8, that `shared` makes known to the others."""
        from torch.distributed import _symmetric_memory as symmetric

        own = symmetric.empty(nbytes, dtype=torch.uint8, device=self.device)
        _count_outside(nbytes)
        weakref.finalize(own, _count_outside, -nbytes).atexit = False
        return own.zero_()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is begun within comes after all that was begun before, on a stream of its own."""
        self._aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._aside):
            yield

    def begun(self) -> Begun:
        """What was begun so far on the stream that is current."""
        return Begun(self.device)

    def shared(self, own: torch.Tensor) -> Shared:
        """What every rank took by `zeros`, `own` here. Every rank must call it, for tensors of one
        size in one order; what was begun to be written to them is then there."""
        from torch.distributed import _symmetric_memory as symmetric

        torch.cuda.synchronize(self.device)
        handle: Any = symmetric.rendezvous(own, self.group)
        of_ranks = [
            own if rank == self.rank else handle.get_buffer(rank, own.shape, own.dtype)
            for rank in range(self.count)
        ]
        return Shared(handle, of_ranks)


@dataclass(frozen=True)
class Shared:
    """One piece of memory of each rank. It stays for as long as this is held."""

    handle: Any
    """torch's, by which GPUs signal to one another: on the stream that is current, `put_signal`
    comes after what was written before, and `wait_signal` before what is read after."""
    of_ranks: list[torch.Tensor]
    """In their order, uint8."""


class Begun:
    """Work of a GPU on its way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.current_stream(device).record_event()

    def wait(self) -> None:
        """What is computed from here on comes after it."""
        torch.cuda.current_stream(self._device).wait_event(self._event)


@lru_cache(maxsize=16)
def peers_of(group: dist.ProcessGroup, device: torch.device) -> Peers | None:
    """Those of `group`, or None where its ranks' devices do not all reach one another: on CPUs, on
    several hosts, and where a rank is shown no GPU but its own. Every rank must call it."""
    mine = _whereabouts(device)
    others: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(others, mine, group=group)
    hosts = {place and place[0] for place in others}
    if None in hosts or len(hosts) > 1:
        return None
    indices = [place[1] for place in others]
    reached = [None] * len(others)
    dist.all_gather_object(reached, _reaches(device, indices), group=group)
    return Peers(group, device) if all(reached) else None


def _whereabouts(device: torch.device) -> tuple[str, int] | None:
    """What tells this host, or container, from others, and the device's number there."""
    if device.type != "cuda" or not BOOT.is_file():
        return None
    index = device.index if device.index is not None else torch.cuda.current_device()
    return f"{socket.gethostname()} {BOOT.read_text().strip()}", index


def _reaches(device: torch.device, indices: list[int]) -> bool:
    """Whether this rank's device reads the memory of all of `indices`."""
    if len(set(indices)) < len(indices) or max(indices) >= torch.cuda.device_count():
        return False
    own = device.index if device.index is not None else torch.cuda.current_device()
    return all(other == own or torch.cuda.can_device_access_peer(own, other) for other in indices)


def by_copies(peers: Peers) -> Callable[[torch.Tensor, torch.Tensor], Begun]:
    """Begins to fill the first tensor with what each rank has in the place of the second, one of
    `Peers.zeros`, which none writes to any more. Every rank must call it with the same ones, but
    none waits for another once each of these was gathered once."""
    known: dict[int, Shared] = {}

    def gather(whole: torch.Tensor, share: torch.Tensor) -> Begun:
        place = share.data_ptr()
        if place not in known:
            known[place] = peers.shared(share)
        parts = whole.chunk(peers.count)
        for step in range(peers.count):  # each begins with another, so that none is read by all
            rank = (peers.rank + step) % peers.count
            parts[rank].copy_(known[place].of_ranks[rank])
        return peers.begun()

    return gather


class PairSums:
    """Shares of a sum that two ranks copy to one another; each adds up both.

    Exchanges that are under way at a time make a round, and rounds take turns in two halves of the
    room for them. What comes from the other rank in one round it sent once it had read what came
    before that round: the half of the room that the next round writes to. So nobody has to say
    that something was read."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._other = 1 - peers.rank
        self._shared: Shared | None = None
        self._room = 0
        self._half = self._begun = self._under_way = 0

    def begin(self, share: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to exchange `share`. What this gives is to be called for the other rank's, which
        stays until the next round but one has begun; what is computed after that call comes after
        the exchange. At most `PARTS` in one round."""
        if not self._under_way:
            self._half, self._begun = 1 - self._half, 0
        assert self._begun < PARTS
        there, here = self._places(share)
        channel = self._channel()
        self._begun += 1
        self._under_way += 1
        assert self._shared is not None
        handle = self._shared.handle
        with self._peers.aside():
            there.copy_(share)
            handle.put_signal(self._other, channel, PATIENCE_MS)
            sent = self._peers.begun()

        def other() -> torch.Tensor:
            sent.wait()
            handle.wait_signal(self._other, channel, PATIENCE_MS)
            self._under_way -= 1
            return here

        return other

    def settle(self) -> None:
        """Between rounds: until the other rank has come here too, and so has read all that was
        sent, wherever the rounds before and after this take their turns from."""
        if self._shared is not None:
            self._shared.handle.put_signal(self._other, 2 * PARTS, PATIENCE_MS)
            self._shared.handle.wait_signal(self._other, 2 * PARTS, PATIENCE_MS)

    def forget(self) -> None:
        """Sums that nobody waits for are none."""
        self._under_way = 0

    def held(self) -> Shared | None:
        """The room that there is now."""
        return self._shared

    def _channel(self) -> int:
        """The place of the next sum in the room, and its signal's."""
        return PARTS * self._half + self._begun

    def _places(self, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the next share goes, the other rank's memory, and where the other's comes to."""
        if share.nbytes > self._room:
            self._take_room(share.nbytes)
        assert self._shared is not None
        start = self._channel() * self._room
        there, here = (
            self._shared.of_ranks[rank][start : start + share.nbytes]
            .view(share.dtype)
            .view(share.shape)
            for rank in (self._other, self._peers.rank)
        )
        return there, here

    def _take_room(self, nbytes: int) -> None:
        """For shares of `nbytes`; both ranks come here with the same."""
        self._room = aligned(nbytes)
        self._shared = self._peers.shared(self._peers.zeros(2 * PARTS * self._room))


def room_of_sums(nbytes: int) -> int:
    """Bytes that a `PairSums` of tensors of `nbytes` takes on each device, each summed in `PARTS`
    parts."""
    return 2 * PARTS * aligned(-(-nbytes // PARTS))


@lru_cache(maxsize=16)
def pair_sums(group: dist.ProcessGroup, device: torch.device) -> PairSums | None:
    """Of the two ranks of `group`; None where they are more, or do not reach one another. Every
    rank must call it."""
    if device.type != "cuda" or dist.get_world_size(group) != RANKS_OF_PAIR:
        return None
    peers = peers_of(group, device)
    return None if peers is None else PairSums(peers)
