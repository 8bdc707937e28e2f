"""What is made to go wrong inside a rank, and where: at a point of a step, or of a save.

Each gives a function for `forked.Run(spoil=...)`. It changes the rank's own process alone, before
the run starts.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from llama.checkpoint.saving import ShardSaver
from llama.checkpoint.store import Store
from llama.engine import engine as engine_module
from llama.launch import processes
from llama.model.transformer import Transformer, TransformerBlock
from llama.parallel.layers import shard_dim
from llama.train.best import Best
from tests.faults.forked import Spoil

Point = Literal["forward", "backward", "all-reduce", "gathering", "accumulation"]
Then = Callable[[], None]

FILE_OPERATIONS = ("open", "write", "fsync", "close", "rename", "link", "mkdir", "unlink", "rmdir")

Owners = Sequence[tuple[Any, str]]
"""Classes and the name of a method of theirs."""
SAVES: Owners = ((Store, "save"), (ShardSaver, "save"))
"""By the main rank, or where all parameters train by every rank."""
KEEPING: Owners = ((Best, "after"),)

HANGS = "this rank hangs"
"""What it writes first."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    print(HANGS, flush=True)
    time.sleep(3600)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_device() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def in_step(step: int, point: Point, then: Then, victim: int = 0) -> Spoil:
    """On rank `victim`, at that point of optimizer step `step` (from 1): before the first product
    of a forward pass, in autograd, with the other ranks waiting in a collective of either kind, or
    between two micro-batches of one window."""

    def spoil(rank: int) -> None:
        if rank != victim:
            return
        now = _count_steps()

        def here() -> None:
            if now[0] == step:
                then()

        if point == "forward":
            register_module_forward_pre_hook(
                lambda m, _: here() if isinstance(m, TransformerBlock) else None
            )
        elif point == "all-reduce":
            _before(torch.distributed, "all_reduce", here)
        elif point == "gathering":
            _before(torch.distributed, "all_gather_into_tensor", here)
        elif point == "accumulation":
            _before(_deepspeed_engine(), "step", here)
        else:
            _in_backward(here)

    return spoil


def in_save(
    save: int,
    operation: int,
    then: Then,
    names: Sequence[str] = FILE_OPERATIONS,
    victim: int = 0,
    owners: Owners = SAVES,
) -> Spoil:
    """On rank `victim`, in place of file operation `operation` (of those in `names`) of save
    `save`, or of `owners` call number `save`, both from 1. Where that is a write, half of it is
    written first."""

    def spoil(rank: int) -> None:
        if rank != victim:
            return
        saves, operations = _count_saves(owners), [0]
        for name in names:
            _interpose(name, saves, operations, (save, operation), then)

    return spoil


def count_file_operations(path: Path, of: int = 0, owners: Owners = SAVES) -> Spoil:
    """Appends to `path` how many file operations each save has on rank `of`, a line each."""

    def spoil(rank: int) -> None:
        if rank != of:
            return
        saves, operations = _count_saves(owners), [0]
        for name in FILE_OPERATIONS:
            _interpose(name, saves, operations, (0, 0), hang)

        def counted(save: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
            operations[0] = 0
            done = save(*args, **keywords)
            with path.open("a") as file:
                file.write(f"{operations[0]}\n")
            return done

        _around(owners, counted)

    return spoil


def small_files(save: int, most_bytes: int) -> Spoil:
    """From save `save` on, the kernel lets rank 0 write no file beyond so many bytes."""

    def spoil(rank: int) -> None:
        if rank:
            return
        original, saves = Store.save, [0]

        def limited(*args: Any, **keywords: Any) -> Any:
            saves[0] += 1
            if saves[0] == save:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
            return original(*args, **keywords)

        Store.save = limited

    return spoil


def not_a_number(first: int, last: int, victim: int) -> Spoil:
    """The loss of rank `victim` is NaN in those steps."""

    def spoil(rank: int) -> None:
        if rank != victim:
            return
        now = _count_steps()

        def spoilt(module: torch.nn.Module, _given: Any, loss: Any) -> Any:
            here = isinstance(module, Transformer) and first <= now[0] <= last
            return loss * float("nan") if here else None

        register_module_forward_hook(spoilt)

    return spoil


def drifted(step: int, victim: int) -> Spoil:
    """From step `step` on a factor of the adapter differs on rank `victim` by one unit in the last
    place, as after a flipped bit."""

    def spoil(rank: int) -> None:
        if rank != victim:
            return
        original = engine_module.Engine.step

        def drift(self: Any, window: Any) -> Any:
            done = original(self, window)
            if self.steps == step:
                name = next(n for n, p in self.trainable.items() if shard_dim(p) is None)
                with torch.no_grad():
                    value = self.trainable[name].view(-1)[0]
                    value.copy_(torch.nextafter(value, value + 1))
            return done

        engine_module.Engine.step = drift

    return spoil


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        yield server.getsockname()[1]


def short_meeting(seconds: float) -> Spoil:
    """Ranks wait so long for one another, and not the minutes after which a rank ends that no
    launcher ends before."""

    def spoil(_rank: int) -> None:
        processes.MEETING = torch.distributed.distributed_c10d.default_pg_timeout = timedelta(
            seconds=seconds
        )

    return spoil


def _deepspeed_engine() -> Any:
    return engine_module.deepspeed.DeepSpeedEngine


def _before(owner: Any, name: str, first: Then) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **keywords: Any) -> Any:
        first()
        return original(*args, **keywords)

    setattr(owner, name, replaced)


def _count_steps() -> list[int]:
    """Holds the number of the optimizer step in progress."""
    now = [0]
    original = engine_module.Engine.step

    def step(self: Any, window: Any) -> Any:
        now[0] = self.steps + 1
        try:
            return original(self, window)
        finally:
            now[0] = 0

    engine_module.Engine.step = step
    return now


def _in_backward(here: Then) -> None:
    owner = _deepspeed_engine()
    original = owner.backward

    def backward(self: Any, loss: torch.Tensor, **keywords: Any) -> Any:
        loss.register_hook(lambda _gradient: here())
        return original(self, loss, **keywords)

    owner.backward = backward


def _count_saves(owners: Owners) -> list[int]:
    """Holds how many saves were begun, and the thread of the one in progress."""
    state = [0, 0]

    def counted(save: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        state[:] = [state[0] + 1, threading.get_ident()]
        try:
            return save(*args, **keywords)
        finally:
            state[1] = 0

    _around(owners, counted)
    return state


def _around(owners: Owners, around: Callable[..., Any]) -> None:
    """Have `around` called in place of each method, with that as its first argument."""
    for owner, name in owners:
        setattr(owner, name, partialmethod(_called, around, getattr(owner, name)))


def _called(owner: Any, around: Callable[..., Any], save: Any, *args: Any, **keywords: Any) -> Any:
    return around(save, owner, *args, **keywords)


def _interpose(
    name: str, saves: list[int], operations: list[int], at: tuple[int, int], then: Then
) -> None:
    original = getattr(os, name)

    def replaced(*args: Any, **keywords: Any) -> Any:
        if saves[1] == threading.get_ident():  # and not of the training beside it
            operations[0] += saves[0] == at[0] or not at[0]
            if (saves[0], operations[0]) == at:
                if name == "write":
                    original(args[0], args[1][: len(args[1]) // 2])
                then()
        return original(*args, **keywords)

    setattr(os, name, replaced)
