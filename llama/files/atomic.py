"""Files and folders that appear whole or not at all.

What is written goes under another name beside its place and is renamed into it. What that gives:

    to a reader   NAME holds the earlier content or the new one, never a part of either: on a local
                  file system a rename within one folder is one act
    to a kill     the same, at whatever moment; a half-made `.NAME.partial` may stay behind, which
                  nobody reads and `remove_leftovers` removes
    to a power    what has been written by the time a function returns is there afterwards, as far
    cut           as the disk and its file system keep to what they say of fsync

What it does not give: two writers of one NAME at once are not kept apart, and no folder can be
renamed over another in one act. Where `write_folder` replaces one, there is a moment between two
renames at which the earlier is `.NAME.old` and nothing is called NAME; ended just there, or where
the second rename fails, NAME is missing, and `remove_leftovers` removes the earlier one too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from llama.files.inputs import is_folder

_PARTIAL, _OLD = ".partial", ".old"


def write_folder(
    folder: Path,
    contents: Mapping[str, bytes],
    verify: Callable[[Path], object] = lambda partial: None,
) -> None:
    """Write `contents`, by name relative to `folder`, as one.

        1  every file into .NAME.partial beside it, each synced to the disk; then the folders
        2  `verify(.NAME.partial)`, which reads them back, and raises where it would not take them
        3  where there is a NAME, rename it to .NAME.old
        4  rename .NAME.partial to NAME, sync the folders above, and remove .NAME.old

    Raises `OSError`, and whatever `verify` raises; .NAME.partial is removed then."""
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


def write_file(path: Path, content: bytes) -> None:
    """Write a file as one: into .NAME.partial beside it, synced to the disk, then renamed to NAME,
    and the folder synced. Raises `OSError`; .NAME.partial is removed then."""
    partial = _beside(path, _PARTIAL)
    try:
        _delete(partial)
        _write(partial, content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            _delete(partial)
        raise
    _sync_folder(path.parent)


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


def _delete(path: Path) -> None:
    """Whatever is there, if anything is."""
    if is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


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
