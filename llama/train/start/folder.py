"""The folder of a run: this process's own, writable, and with room for what the run will write. It
is looked at before any weights load, where a run would else fail at its first save."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from llama.errors import UserError
from llama.parallel.agreement import on_every, on_main
from llama.parallel.mesh import Mesh

FOLDERS = Path("runs")
"""Where a run for which no folder was named makes its own."""
_LOCK = ".lock"
_PROBE = 1 << 16
"""Bytes: more than a file system keeps beside a file's name, so that blocks are asked for."""
_FILES = 128
"""Files and folders that a run makes, and some to spare; a file system may have none left to give
while it has bytes."""


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Turn what the system says of `folder` into the one line that a user is told."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"--output_dir: {folder} cannot be written in: {why}; give another folder"
        ) from None


def make_folder(folder: Path | None) -> Path:
    """`folder`, or where none was named one of this moment that no other run has, made here. Of
    runs that begin in one second each finds another name free. Raises `UserError`."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        FOLDERS.mkdir(exist_ok=True)
        name = time.strftime("%Y%m%d-%H%M%S")
        for number in count(1):
            folder = FOLDERS / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        what = f"{folder or FOLDERS} cannot be made: {error.strerror or error}"
        raise UserError(f"--output_dir: {what}") from None
    raise AssertionError("names have no end")


def lock(folder: Path) -> int:
    """Hold `folder` until this process ends, however it ends: two runs would spoil each other.
    Gives the descriptor that holds it; raises `UserError`."""
    with writing_in(folder):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"--output_dir: {folder} is being written by another process; wait for its end, or "
            "give another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def require_room(folder: Path, checkpoints: Path, need: int, smaller: str) -> None:
    """Raise `UserError` unless files can be written in `folder` and in `checkpoints`, and the file
    system has `need` bytes for them, else `smaller` says what the user may do, and files to give. A
    quota shows in the first alone. Nothing is left behind: what is not there yet is asked of the
    folder above, in which it will be made."""
    places = dict.fromkeys(map(_nearest, (folder, checkpoints)))
    for place in places:
        with writing_in(place), tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    usage = shutil.disk_usage(_nearest(folder))
    if usage.total and usage.free < need:  # some file systems have no size at all
        raise UserError(
            f"--output_dir: {folder} has room for {usage.free:,} bytes, and the run is to write at "
            f"least {need:,}: make room, {smaller}, or give another folder"
        )
    system = os.statvfs(_nearest(folder))
    if system.f_files and system.f_favail < _FILES:  # some file systems do not count them
        raise UserError(
            f"--output_dir: the file system of {folder} has room for {system.f_favail} more files "
            f"(inodes), and the run makes up to {_FILES}: remove some, or give another folder"
        )


def require_shared(folder: Path, mesh: Mesh) -> None:
    """Raise `UserError`, on every rank, unless all ranks see the same `folder`, made by the main
    one. Every rank must call it."""
    if mesh.world_size == 1:
        return
    (number,) = mesh.of_main([secrets.randbits(62)])
    mark = f".shared-{number:x}"
    try:
        on_main(mesh, (folder / mark).touch)
        on_every(mesh, lambda: _require_seen(folder, mark, mesh.rank))
    finally:
        if mesh.is_main:
            (folder / mark).unlink(missing_ok=True)


def _require_seen(folder: Path, mark: str, rank: int) -> None:
    if not (folder / mark).exists():
        raise UserError(
            f"--output_dir: {folder} is not the same folder on rank {rank} "
            f"({socket.gethostname()}) as on rank 0: with --method full each rank writes its part "
            "of a checkpoint there; give one on a file system that all hosts share"
        )


def _nearest(folder: Path) -> Path:
    """`folder`, or the first one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
