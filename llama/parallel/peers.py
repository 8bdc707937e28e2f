"""Memory of the GPUs of one host that every rank of a group reads as its own.

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
from datetime import timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama.notes import note

BOOT = Path("/proc/sys/kernel/random/boot_id")

TRIED = 256
"""Bytes that are made known to find out whether that can be done."""

_outside = 0


def outside_bytes() -> int:
    """What `Peers` hold of this process's device, which torch's allocator does not count."""
    return _outside


def _count_outside(nbytes: int) -> None:
    global _outside
    _outside += nbytes


class Peers:
    """The ranks of `group`, of which each has `device`s that reach one another."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, multiprocessors: int
    ) -> None:
        self.group = group
        self.device = device
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.multiprocessors = multiprocessors
        """Of the device that has the fewest: the same number on every rank."""

    @contextmanager
    def aside(self, number: int) -> Iterator[None]:
        """What is begun within it comes after all that was before, and what of the same `number`
        was, and goes on beside what is begun after it."""
        stream = self._streams[number]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield

    @cached_property
    def _streams(self) -> list[torch.cuda.Stream]:
        """Of high priority, so that ranks meet as soon as they can, whatever else is to run."""
        return [torch.cuda.Stream(self.device, priority=-1) for _ in range(2)]

    def zeros(self, nbytes: int) -> torch.Tensor:
        """Room for `nbytes`, uint8, that `shared` makes known to the others."""
        from torch.distributed import _symmetric_memory as symmetric

        own = symmetric.empty(nbytes, dtype=torch.uint8, device=self.device)
        _count_outside(nbytes)
        weakref.finalize(own, _count_outside, -nbytes).atexit = False
        return own.zero_()

    def meet(self, shared: Shared, patience: timedelta) -> None:
        """What is computed from here on, on the stream that is current, comes after all that every
        rank has begun before its call of this with the same `shared`. A device that waits longer
        than `patience` fails."""
        shared.handle.barrier(channel=0, timeout_ms=int(patience.total_seconds() * 1000))

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
    """torch's, which has the others' memory mapped here."""
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
    others = _of_all(_whereabouts(device), group)
    hosts = {place and place[0] for place in others}
    if None in hosts or len(hosts) > 1:
        return None
    if not _all(_reaches(device, [place[1] for place in others]), group):
        return None
    peers = Peers(group, device, min(_of_all(_multiprocessors(device), group)))
    return peers if _all(_shows(peers), group) else None


def _all(so: bool, group: dist.ProcessGroup) -> bool:
    """Whether every rank says so."""
    return all(_of_all(so, group))


def _of_all(own: Any, group: dist.ProcessGroup) -> list[Any]:
    """What each rank has for `own`."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group=group)
    return found


def _shows(peers: Peers) -> bool:
    """Whether memory can be made known: a container may not let processes hand it to others."""
    try:
        peers.shared(peers.zeros(TRIED))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        note(f"GPUs of this host exchange by collectives, and not by copies: {reason}")
        return False
    return True


def _whereabouts(device: torch.device) -> tuple[str, int] | None:
    """What tells this host, or container, from others, and the device's number there."""
    if device.type != "cuda" or not BOOT.is_file():
        return None
    return f"{socket.gethostname()} {BOOT.read_text().strip()}", _index(device)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _index(device: torch.device) -> int:
    return device.index if device.index is not None else torch.cuda.current_device()


def _reaches(device: torch.device, indices: list[int]) -> bool:
    """Whether this rank's device reads the memory of all of `indices`."""
    if len(set(indices)) < len(indices) or max(indices) >= torch.cuda.device_count():
        return False
    own = _index(device)
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
