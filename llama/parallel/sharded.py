"""A frozen base cut over data-parallel ranks: each keeps one flat share of every unit of
parameters, mostly a transformer block, and has a unit whole for as long as it computes with it.

A unit's parameters are laid end to end as bytes, whatever they mean, and cut into as many equal
shares as there are ranks, so that one all-gather brings all of them into place: nothing is copied
in or out. Between its uses a parameter is empty; when its unit is there its `data` is a view of
it. What computes with a weight must therefore ask the parameter for it when it does, and save
neither the tensor nor a view of it for the backward pass.

Since the base never changes, what has been gathered stays good for as long as its room is not
needed for another unit. All ranks must use the same units in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from llama.parallel.peers import by_copies, peers_of

ALIGNED = 256
"""Bytes: each parameter begins at a multiple of them, as kernels for matrices want it."""
ROOMS = 3
"""Units that have room at a time: one that is computed with, the next, and the one before, whose
kernels may still run while the next is gathered."""


class Pending(Protocol):
    """An exchange on its way."""

    def wait(self) -> object:
        """Until what comes after it finds it done; raises where a rank has gone."""
        ...


Gather = Callable[[torch.Tensor, torch.Tensor], Pending]
"""Begins to fill the first tensor with what all ranks give as the second, in the order of ranks."""
Room = Callable[[int, torch.device], torch.Tensor]
"""Zeros for the share of a unit, so many bytes of a device, uint8."""


def plain_room(nbytes: int, device: torch.device) -> torch.Tensor:
    """In memory of torch's own."""
    return torch.zeros(nbytes, dtype=torch.uint8, device=device)


@dataclass(frozen=True)
class Sharers:
    """Ranks that share a base: the place of this one, their number, how shares come together, and
    where they lie."""

    rank: int
    count: int
    gather: Gather
    room: Room = plain_room
    by_copies: bool = False
    """From device to device: no rank waits for another."""

    @classmethod
    def of_group(cls, group: dist.ProcessGroup, device: torch.device) -> Sharers:
        """By copies from device to device where these reach one another, else by the collective of
        the group's own backend. Every rank must call it."""
        peers = peers_of(group, device)
        if peers is not None:
            gather, room = by_copies(peers), lambda size, _: peers.zeros(size)
            return cls(peers.rank, peers.count, gather, room, True)

        def collected(whole: torch.Tensor, share: torch.Tensor) -> Pending:
            work = dist.all_gather_into_tensor(whole, share, group=group, async_op=True)
            assert work is not None
            return work

        return cls(dist.get_rank(group), dist.get_world_size(group), collected)


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in its unit, and what it is when it is there."""

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def view(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self.start : self.start + self.nbytes].view(self.dtype).view(self.shape)


class Unit:
    """Parameters that are gathered together. `passing`: its room is let go of once another unit is
    in use."""

    def __init__(self, base: ShardedBase, passing: bool = False) -> None:
        self.base = base
        self.passing = passing
        self._places: dict[str, _Place] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._end = 0
        self._share: torch.Tensor | None = None

    def expect(self, name: str, like: torch.Tensor) -> None:
        """Make room for a parameter of the shape and type of `like`, before any is put in."""
        assert self._share is None and name not in self._places
        self._places[name] = place = _Place(self._end, like.shape, like.dtype)
        self._end += aligned(place.nbytes)

    @property
    def share_size(self) -> int:
        """Bytes of one rank's share."""
        return aligned(-(-self._end // self.base.sharers.count))

    @property
    def size(self) -> int:
        """Bytes of the whole, filled up to equal shares."""
        return self.share_size * self.base.sharers.count

    @property
    def share(self) -> torch.Tensor:
        """This rank's, uint8."""
        if self._share is None:
            self._share = self.base.sharers.room(self.share_size, self.base.device)
        return self._share

    def nbytes(self, name: str) -> int:
        """Bytes of the whole parameter."""
        return self._places[name].nbytes

    def own_bytes(self, name: str) -> tuple[int, int]:
        """Of the parameter's bytes, the `[first, end)` that lie in this rank's share."""
        place, begin = self._places[name], self.share_size * self.base.sharers.rank
        first, end = begin - place.start, begin + self.share_size - place.start
        return min(max(first, 0), place.nbytes), min(max(end, 0), place.nbytes)

    @torch.no_grad()
    def put(self, name: str, parameter: nn.Parameter, content: torch.Tensor, start: int) -> None:
        """Take this rank's bytes of `parameter` from `content`, which holds those from `start` on,
        as far as they go; from then on the unit fills and empties it."""
        first, end = self.own_bytes(name)
        if first < end:
            flat = content.detach().contiguous().flatten().view(torch.uint8)
            into = self._places[name].start + first - self.share_size * self.base.sharers.rank
            self.share[into : into + end - first].copy_(flat[first - start : end - start])
        self._parameters[name] = parameter
        parameter.base_unit = self  # type: ignore[attr-defined]
        parameter.data = parameter.data.new_empty(0)

    def views(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in `whole`, in their order."""
        return [self._places[name].view(whole) for name in self._parameters]

    def show(self, views: list[torch.Tensor]) -> None:
        """Have the parameters be `views`."""
        for parameter, view in zip(self._parameters.values(), views, strict=True):
            parameter.data = view

    def hide(self) -> None:
        """Have the parameters be empty: who reads one then is told so by its shape."""
        for parameter in self._parameters.values():
            parameter.data = parameter.data.new_empty(0)


@dataclass
class _Room:
    """Memory for a unit, and whose it is now."""

    buffer: torch.Tensor
    free: Any
    """On CUDA, when the kernels that read what was there before have run."""
    unit: Unit | None = None
    pending: Pending | None = None
    views: dict[Unit, list[torch.Tensor]] = field(default_factory=dict)
    """The parameters of each unit that has been here: made once, as a step makes many."""


class ShardedBase:
    """The units of a base of `blocks` transformer blocks."""

    def __init__(self, sharers: Sharers, device: torch.device, blocks: int, tied: bool) -> None:
        """`tied`: the head is the embedding."""
        self.sharers = sharers
        self.device = device
        self.embedding = Unit(self, passing=True)
        self.head = self.embedding if tied else Unit(self, passing=True)
        self.blocks = [Unit(self) for _ in range(blocks)]
        self._most = rooms(blocks)
        self._held: dict[Unit, _Room] = {}
        """Units that are there or on their way, the one asked for last at the end."""
        self._current: Unit | None = None
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def use(self, unit: Unit, then: Unit | None = None) -> None:
        """Have `unit` whole for what is computed from now on, until another one is in use; begin to
        gather `then`, which is to come next."""
        self._leave(unit)
        begun = self._begin(unit)
        assert begun is not None
        if then is not None:
            self._begin(then)
        self._arrived(unit)

    def settle(self) -> None:
        """Have nothing on its way: what is computed from now on comes after it."""
        for unit in self._held:
            self._arrived(unit)

    def forget(self) -> None:
        """Have no unit whole, no room for any, and wait for none. What was computed with them may
        go on."""
        for unit, room in list(self._held.items()):
            room.pending = None
            self._evict(unit)
        self._current = None

    def held(self) -> None:
        """The shares stay as long as the model, and rooms as long as their units."""

    def held_bytes(self) -> int:
        """Of the shares on this rank, without the rooms."""
        return sum(unit.share_size for unit in {self.embedding, self.head, *self.blocks})

    def most_room_bytes(self) -> int:
        """Of the rooms that a pass takes: some blocks', and the embedding's or the head's."""
        passing = max(self.embedding.size, self.head.size)
        return self._most * max(block.size for block in self.blocks) + passing

    def room_bytes(self) -> int:
        """Of the rooms that are taken now."""
        return sum(room.buffer.nbytes for room in self._held.values())

    def _arrived(self, unit: Unit) -> None:
        """`unit`, if it was on its way, is there for what is computed from now on."""
        room = self._held[unit]
        if room.pending is not None:
            room.pending.wait()
            room.pending = None
            if unit not in room.views:
                room.views[unit] = unit.views(room.buffer)
            unit.show(room.views[unit])

    def _leave(self, unit: Unit) -> None:
        """`unit` is to be current; what was is read by no kernel that is started later."""
        last, self._current = self._current, unit
        if last is None or last is unit or last not in self._held:
            return
        if last.passing:
            self._evict(last)
        else:
            self._held[last].free = self._now()

    def _now(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event() if self._aside else None

    def _begin(self, unit: Unit) -> _Room | None:
        """The room in which `unit` is or will be; None where all are in use."""
        room = self._held.pop(unit, None) or self._room_for(unit)
        if room is None:
            return None
        self._held[unit] = room
        if room.unit is not unit:
            room.pending = self._gathered_aside(room, unit)
            room.unit = unit
        return room

    def _gathered_aside(self, room: _Room, unit: Unit) -> Pending:
        """On CUDA on a stream of its own, as soon as the room is free."""
        whole = room.buffer[: unit.size]
        if self._aside is None:
            return self.sharers.gather(whole, unit.share)
        self._aside.wait_event(room.free)
        with torch.cuda.stream(self._aside):
            return self.sharers.gather(whole, unit.share)

    def _room_for(self, unit: Unit) -> _Room | None:
        """Room that no kernel to come reads: a new one, or that of the unit longest unused."""
        others = [other for other in self._held if not other.passing]
        if unit.passing or len(others) < self._most:
            size = unit.size if unit.passing else max(block.size for block in self.blocks)
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            return _Room(buffer, self._now())
        oldest = next((other for other in others if other is not self._current), None)
        return None if oldest is None else self._evict(oldest)

    def _evict(self, unit: Unit) -> _Room:
        room = self._held.pop(unit)
        if room.pending is not None:
            room.pending.wait()
            room.pending = None
        unit.hide()
        return room


def aligned(size: int) -> int:
    """`size` bytes, filled up."""
    return -(-size // ALIGNED) * ALIGNED


def share_bytes(sizes: Iterable[int], ranks: int) -> int:
    """Bytes of one of `ranks` equal shares of a unit of parameters of `sizes` bytes."""
    return aligned(-(-sum(map(aligned, sizes)) // ranks))


def rooms(blocks: int) -> int:
    """How many blocks are whole at a time: never all of them."""
    return min(ROOMS, max(1, blocks - 1))


def base_of(parameter: nn.Parameter) -> ShardedBase | None:
    """That which holds `parameter`, or None."""
    return parameter.base_unit.base if is_sharded(parameter) else None  # type: ignore[attr-defined]


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether `parameter` is empty between its uses since a `ShardedBase` holds it."""
    return hasattr(parameter, "base_unit")


@contextmanager
def whole(parameter: Any) -> Iterator[None]:
    """Within it `parameter`, of a `ShardedBase`, is whole, to be read. Every rank must enter it."""
    unit: Unit = parameter.base_unit
    unit.base.use(unit)
    yield
