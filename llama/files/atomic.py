"""Files and folders that appear whole or not at all.

What is written goes under another name beside its place and is renamed into it. What that gives:

    to a reader   NAME holds the earlier content or the new one, never a part of either: on a local
                  file system a rename within one folder is one act
    to a kill     the same, at whatever moment, once `remove_leftovers` has been there: the next
                  process to write in a folder calls it before it reads there
    to a power    what has been written by the time a function returns is there afterwards, as far
    cut           as the disk and its file system keep to what they say of fsync

What it does not give: two writers of one NAME at once are not kept apart, and no folder can be
renamed over another in one act. Where `write_folder` replaces one, there is a moment between two
renames at which the earlier is `.NAME.old` and nothing is called NAME. A reader may come just then,
and finds nothing. A process may be ended just then: `remove_leftovers` gives the earlier one its
name back. What else may be left beside NAME is `.NAME.partial`, half made, and `.NAME.gone`, half
removed; nobody reads them, and it removes them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from llama.files import life
from llama.files.inputs import is_folder
from llama.files.new_file import NewFile

_PARTIAL, _OLD, _GONE = ".partial", ".old", ".gone"


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

    Raises `OSError`, and whatever `verify` raises; NAME is then what it was, and .NAME.partial is
    removed."""
    try:
        partial = begin_folder(folder)
        for name, content in contents.items():
            write_in(partial, name, content)
        sync_folders(partial)
        verify(partial)
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise


def link_folder(source: Path, folder: Path) -> None:
    """Let `folder` hold the files of `source`, as one, in the way of `write_folder`. They are the
    same files under a second name, which takes no room; copies where the file system gives a file
    one name only. Raises `OSError`; `folder` is then what it was."""
    try:
        partial = begin_folder(folder)
        for path in sorted(source.rglob("*")):
            if not is_folder(path):
                _link(path, partial / path.relative_to(source))
        sync_folders(partial)
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise


def begin_folder(folder: Path) -> Path:
    """The first step of `write_folder`, for content that is not all there at once: .NAME.partial,
    made empty. Then come `write_in` and other ways to write files there that sync them,
    `sync_folders` and `finish_folder`; or `abandon_folder`."""
    partial = _beside(folder, _PARTIAL)
    _delete(partial)
    os.makedirs(partial)
    return partial


def write_in(partial: Path, name: str, content: bytes) -> None:
    """Write one file of the folder, synced to the disk."""
    os.makedirs((partial / name).parent, exist_ok=True)
    _write(partial / name, content)


def sync_folders(partial: Path) -> None:
    """Have the names of all files in `partial` on the disk."""
    for inside in [path for path in partial.rglob("*") if is_folder(path)] + [partial]:
        _sync(inside)


def finish_folder(folder: Path) -> None:
    """Let .NAME.partial be NAME, in place of what has that name: steps 3 and 4 of `write_folder`.
    Raises `OSError`; then `abandon_folder` is to be called."""
    old = _beside(folder, _OLD)
    if os.path.lexists(folder):
        _delete(old)
        os.rename(folder, old)
    os.rename(_beside(folder, _PARTIAL), folder)
    for above in (folder.parent, folder.parent.parent):  # which may be new itself
        _sync(above)
    _delete(old)


def abandon_folder(folder: Path) -> None:
    """Give up what was begun: NAME is what it was."""
    with suppress(OSError):
        _put_back(_beside(folder, _OLD), folder)
    shutil.rmtree(_beside(folder, _PARTIAL), ignore_errors=True)


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
    _sync(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that at no moment a part of it goes by its name."""
    gone = _beside(folder, _GONE)
    _delete(gone)
    os.rename(folder, gone)
    _delete(gone)


def remove_leftovers(folder: Path, ours: Callable[[str], bool]) -> None:
    """Put right what a killed run has left in `folder` beside each NAME of which `ours` is true. A
    folder that was being replaced has its name back; what is half made or half removed goes. Other
    files that are called alike are somebody else's, and stay."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        for ending in (_OLD, _PARTIAL, _GONE):
            name = path.name.removeprefix(".").removesuffix(ending)
            if path.name == f".{name}{ending}" and ours(name):
                if ending == _OLD:
                    _put_back(path, folder / name)
                _delete(path)


def _put_back(old: Path, folder: Path) -> None:
    """Give what was to be replaced its name back, where nothing has taken it."""
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.rename(old, folder)


def _delete(path: Path) -> None:
    """Whatever is there, if anything is."""
    life.show()
    if is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


def _link(path: Path, to: Path) -> None:
    life.show()
    os.makedirs(to.parent, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:  # of whatever kind: a disk that is full refuses the copy too
        shutil.copyfile(path, to)
        _sync(to)


def _write(path: Path, content: bytes) -> None:
    file = NewFile(path)
    try:
        file.write(content)
        file.finish()
    finally:
        file.close()


def _sync(path: Path) -> None:
    """Have a folder's names, or a file's content, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
