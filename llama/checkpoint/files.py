"""Folders that appear whole or not at all, and that outlast a power cut once they have appeared."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from llama.errors import UserError
from llama.files.inputs import file_problem
from llama.files.kinds import SAFETENSORS, TEXTS

_PARTIAL, _OLD = ".partial", ".old"


def write_folder(
    folder: Path,
    contents: Mapping[str, bytes],
    verify: Callable[[Path], object] = lambda partial: None,
) -> None:
    """Write `contents`, by name relative to `folder`, as one.

        1  every file into .NAME.partial beside it, each synced to the disk; then the folders
        2  `verify(.NAME.partial)`, which reads them back, and raises where it would not take them
        3  rename to NAME, which is when it appears, and sync the folder that holds it

    Ended anywhere in between, NAME is what it was before or what it is now. Where there was a NAME
    it is moved aside before 3 and removed after. Raises `OSError`, having tidied up."""
    partial, old = _beside(folder, _PARTIAL), _beside(folder, _OLD)
    try:
        _delete(partial)
        os.makedirs(partial)
        for name, content in contents.items():
            os.makedirs((partial / name).parent, exist_ok=True)
            _write(partial / name, content)
        for inside in {(partial / name).parent for name in contents} | {partial}:
            _sync_folder(inside)
        verify(partial)
        if os.path.lexists(folder):
            _delete(old)
            os.rename(folder, old)
        os.rename(partial, folder)
        for above in (folder.parent, folder.parent.parent):  # which may be new itself
            _sync_folder(above)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _delete(old)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that at no moment a part of it goes by its name."""
    old = _beside(folder, _OLD)
    _delete(old)
    os.rename(folder, old)
    _delete(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run has left half-made or half-removed in `folder`."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith((_PARTIAL, _OLD)):
                _delete(path)


def read_file(path: Path, size: int) -> bytes:
    """All of a regular file of `size` bytes, no link followed; `UserError` where it is not that."""
    if path.is_symlink():
        raise UserError(f"{path}: is a link; a file is expected")
    if problem := file_problem(path, (SAFETENSORS, *TEXTS)):
        raise UserError(f"{path}: {problem}")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path}: damaged: {size:,} bytes were saved, and it has {found:,}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            _forget(descriptor)
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _delete(path: Path) -> None:
    """Whatever is there, if anything is."""
    if is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}{ending}")


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(descriptor: int) -> None:
    """Have what is read come from the disk, not from the memory it was written from."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
