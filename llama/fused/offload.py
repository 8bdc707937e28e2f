"""Block inputs in host memory between the forward and the backward pass.

A block that is computed again needs its input for that, one tensor of `[T, D]`, and of a long row
those of all blocks are most of what a step takes. Here each is copied to host memory while its
block computes, and comes back ahead of its block's backward pass.

Copies are made on a stream of their own. Device memory is taken and given back on the stream that
computes, which waits for a copy before it goes on to where the memory may serve something else. So
no memory is held for longer than the computation itself would, however far ahead the host runs.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch

from llama.errors import UserError
from llama.kernels.paths import is_planned

LATE = 2**27
"""Elements of an input from which on the one before is fetched once its block's attention has gone
back, which is where most memory is taken, and not from the start. The products that are left are
long enough for most of the copy, and attention over rows so long takes many times what it does."""


class Copies(Protocol):
    """How bytes get from a device to its host and back."""

    def room(self, nbytes: int) -> Any:
        """Host memory of so many bytes; `nbytes` of it says how many."""
        ...

    def to_host(self, x: torch.Tensor, room: Any) -> Any:
        """Begin to copy `x`, and say by what `wait` knows that it was done. `x` must neither be
        written nor freed before."""
        ...

    def to_device(self, room: Any, out: torch.Tensor) -> Any:
        """Begin to copy into `out` what was copied to `room`; the same."""
        ...

    def wait(self, copied: Any) -> None:
        """Have what is computed from here on come after the copy."""
        ...

    def finish(self) -> None:
        """Have all copies done when this returns, those of recorded passes too."""
        ...


class HostInputs:
    """The inputs of a model's blocks that are in host memory, and those on their way.

    Host memory serves pass after pass. All copies are made one after the other, so that what is
    fetched from a piece of it is out before the next pass is copied there."""

    def __init__(self, copies: Copies | None = None) -> None:
        """`copies`: None means those of the first input's device."""
        self._copies = copies
        self._free: list[Any] = []
        self._leaving: tuple[torch.Tensor, Any] | None = None
        """The input that is being copied to the host, held until that is done."""
        self._coming: tuple[Stored, torch.Tensor, Any] | None = None
        """The input that is being fetched."""
        self._last: weakref.ref[Stored] | None = None

    def store(self, x: torch.Tensor) -> Stored:
        """Begin to copy `x`, which its block may go on reading, to the host."""
        if self._copies is None:
            self._copies = copies_of(x.device)
        self.settle()
        room = self._room(x.nbytes)
        self._leaving = x, self._copies.to_host(x, room)
        before = self._last() if self._last is not None else None
        stored = Stored(self, room, x, before)
        weakref.finalize(stored, self._free.append, room).atexit = False
        self._last = weakref.ref(stored)
        return stored

    def fetch(self, stored: Stored) -> None:
        """Begin to bring an input back, unless that has begun."""
        if self._coming is not None and self._coming[0] is stored:
            return
        assert self._copies is not None
        self.settle()
        x = torch.empty(stored.shape, dtype=stored.dtype, device=stored.device)
        self._coming = stored, x, self._copies.to_device(stored.room, x)

    def take(self, stored: Stored) -> torch.Tensor:
        """The input, to be read by what is computed from here on."""
        self.fetch(stored)
        assert self._coming is not None
        x = self._coming[1]
        self.settle()
        return x

    def forget(self) -> None:
        """Let go of what is on its way, and wait for none of it."""
        self._leaving = self._coming = None

    def settle(self) -> None:
        """Let go of what is on its way, either way: what is computed from here on comes after."""
        for moving in (self._leaving, self._coming):
            if moving is not None and self._copies is not None:
                self._copies.wait(moving[-1])
        self.forget()

    def held(self) -> list[Any]:
        """The memory that serves passes, while none is between its forward and its backward one."""
        return list(self._free)

    def has_room(self, count: int, nbytes: int) -> bool:
        """Whether so many inputs of `nbytes` each would find memory that is there."""
        return sum(room.nbytes >= nbytes for room in self._free) >= count

    def make_room(self, count: int, nbytes: int, device: torch.device) -> None:
        """Take what memory so many inputs of `device` need. To be called before a pass is recorded:
        in the middle of that no device takes memory of its host, or is waited for."""
        if self._copies is None:
            self._copies = copies_of(device)
        self._free += [self._room(nbytes) for _ in range(count)]

    def _room(self, nbytes: int) -> Any:
        assert self._copies is not None
        fitting = [room for room in self._free if room.nbytes >= nbytes]
        if fitting:
            self._free.remove(found := min(fitting, key=lambda room: room.nbytes))
            return found
        if self._free:  # all too small: one less, so that there are as many as there were
            self._copies.finish()
            self._free.remove(min(self._free, key=lambda room: room.nbytes))
        return self._copies.room(nbytes)


class Stored:
    """One input in host memory. When nobody holds it any more, the memory serves the next one."""

    def __init__(
        self, inputs: HostInputs, room: Any, x: torch.Tensor, before: Stored | None
    ) -> None:
        self._inputs = inputs
        self.room = room
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.late = x.numel() >= LATE
        """Whether `ahead` had better be called once memory is free again."""
        self._before = weakref.ref(before) if before is not None else None

    def take(self) -> torch.Tensor:
        """The input, back on its device."""
        return self._inputs.take(self)

    def ahead(self) -> None:
        """Begin to fetch the input that was stored before this one, whose block goes back next."""
        before = self._before() if self._before is not None else None
        if before is not None:
            self._inputs.fetch(before)


def copies_of(device: torch.device) -> Copies:
    """What serves `device`."""
    if is_planned():
        return _NoCopies()
    return _OnStream(device) if device.type == "cuda" else PlainCopies()


class PlainCopies:
    """Copies that are done when they are asked for."""

    def room(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def to_host(self, x: torch.Tensor, room: torch.Tensor) -> None:
        _as(room, x).copy_(x)

    def to_device(self, room: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(_as(room, out))

    def wait(self, copied: None) -> None:
        pass

    def finish(self) -> None:
        pass


def _as(room: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The beginning of `room` in the form of `x`."""
    return room[: x.nbytes].view(x.dtype).view(x.shape)


class _Pinned:
    """Host memory that a GPU copies from and to by itself. It is registered as such after it was
    taken: torch's own allocator of such memory rounds up to a power of two."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.bytes = torch.empty(nbytes, dtype=torch.uint8)
        cudart: Any = torch.cuda.cudart()
        place = self.bytes.data_ptr()
        if failed := int(cudart.cudaHostRegister(place, nbytes, 0)):
            gib = nbytes / 2**30
            raise UserError(
                f"the host gives no {gib:.2f} GiB more of pinned memory for a block's input (CUDA "
                f"error {failed}): --checkpointing auto takes less of it, or give shorter rows"
            )
        weakref.finalize(self, cudart.cudaHostUnregister, place).atexit = False


class _OnStream:
    """Copies by a CUDA device, beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def room(self, nbytes: int) -> _Pinned:
        return _Pinned(nbytes)

    def to_host(self, x: torch.Tensor, room: _Pinned) -> torch.cuda.Event:
        return self._copy(_as(room.bytes, x), x)

    def to_device(self, room: _Pinned, out: torch.Tensor) -> torch.cuda.Event:
        return self._copy(out, _as(room.bytes, out))

    def _copy(self, to: torch.Tensor, of: torch.Tensor) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            to.copy_(of, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(self._stream)
        return copied

    def wait(self, copied: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(copied)

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)


class _NoCopies(PlainCopies):
    """In a trace that computes nothing, whose tensors have no values: nothing is taken on the host,
    and so nothing is counted."""

    def room(self, nbytes: int) -> Any:
        return _Nothing(nbytes)

    def to_host(self, x: torch.Tensor, room: Any) -> None:
        pass

    def to_device(self, room: Any, out: torch.Tensor) -> None:
        pass


class _Nothing:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
