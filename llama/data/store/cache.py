"""Where made examples are kept from one run to the next, by the content that they come from.

    DIR/KEY/            an entry; KEY is the SHA-256 of all that it depends on
    DIR/.making-*/      one that is being made, its maker holding a lock in it
    DIR/.locks/KEY.*    .make: held by the one that makes it, the others waiting
                        .use: held by every run that has it mapped
                        .ASKED.refused: what was wrong with the rows, for those that waited

An entry is made under another name, synced to the disk and renamed: at whatever moment its maker is
killed, KEY is whole or is not there. The kernel lets go of a dead process's locks. Where the file
system has no locks, everyone makes his own and the last to rename finds the place taken: nothing is
lost but time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama.data.store.entry import INDEX, DamagedError, Entry, NotKeptError, Sink, read_entry
from llama.errors import UserError
from llama.files.json_text import json_text
from llama.notes import note

LIMIT = 64 << 30
"""Bytes of all entries together: above that the ones that were used longest ago are removed."""
PATIENCE = 5.0
"""Seconds of waiting for another process after which a line says so."""
YOUNG = 60.0
"""Seconds for which what another process has begun is left alone in any case."""
OLD = 86400.0
"""Seconds after which nobody waits for a refusal any more."""
_MAKING = ".making-"

Fill = Callable[[Sink, bool], dict[str, Any]]
"""Puts the arrays of an entry into a sink and gives its facts. Its second argument says whether
others wait for it."""


def default_folder() -> Path:
    """As the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    home = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return home / "llama-lora" / "data"


def cached(folder: Path, key: str, types: dict[str, str], fill: Fill, asked: str = "") -> Entry:
    """The entry `key` of the cache in `folder`, made by `fill` if it is not there whole. Where the
    folder cannot be written, a line says so and the entry is held in memory.

    A UserError of `fill` is raised by all that wait for it: reading bad rows takes as long as good
    ones, and the ranks of a host would do it one after another. `asked` tells apart those to whom
    it would say something else, as by the names of the files."""
    if (entry := _found(folder, key, tell=False)) is not None:
        return entry
    try:
        os.makedirs(folder / ".locks", exist_ok=True)
        name = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        refusal = folder / ".locks" / f"{key}.{name}.refused"
        before = _mark(refusal)
        with _locked(folder / ".locks" / f"{key}.make", key) as alone:
            if problems := _refused(refusal, before):  # Another was, meanwhile.
                raise UserError(problems)
            if (entry := _found(folder, key, tell=True)) is not None:  # Another made it meanwhile.
                return entry
            try:
                return _made(folder, key, types, fill, alone)
            except UserError as error:
                _keep(refusal, error)
                raise
    except NotKeptError as error:
        why = str(error)
    except OSError as error:
        why = error.strerror or str(error)
    _tell_once(
        f"--data_cache: {folder} cannot be written ({why}): the examples are held in memory, and "
        "made again at the next start"
    )
    return in_memory(types, fill)


@lru_cache
def _tell_once(line: str) -> None:
    """Of all that is to be kept there."""
    note(line)


def in_memory(types: dict[str, str], fill: Fill) -> Entry:
    """An entry that is kept nowhere."""
    sink = Sink(types)
    return sink.finish(fill(sink, False))


def _found(folder: Path, key: str, tell: bool) -> Entry | None:
    """The entry, if it is there whole; kept from then on for as long as it is held."""
    if not os.path.lexists(folder / key):
        return None
    held = None
    with suppress(OSError):
        held = (folder / ".locks" / f"{key}.use").open("ab")
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        entry = read_entry(folder / key)
    except DamagedError as error:
        if tell:
            note(f"{folder / key}: is damaged ({error}); it is made again")
        return None
    if entry is not None:
        entry.held = held
        with suppress(OSError):
            os.utime(folder / key / INDEX)  # What was used last is removed last.
    return entry


def _made(folder: Path, key: str, types: dict[str, str], fill: Fill, alone: bool) -> Entry:
    _remove_unfinished(folder)
    making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder))
    try:
        with (making / "lock").open("wb") as lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sink = Sink(types, making)
            try:
                sink.finish(fill(sink, alone))
            finally:
                sink.close()
            _sync_folder(making)
            _put(making, folder / key)
            _sync_folder(folder)
    except OSError as error:
        raise NotKeptError(error.strerror or str(error)) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    entry = _found(folder, key, tell=False)
    if entry is None:
        raise NotKeptError("what was written there is not what is read")
    _bound(folder, key)
    return entry


def _mark(file: Path) -> tuple[int, int] | None:
    """What another file in the place of `file` has otherwise."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _keep(refusal: Path, error: UserError) -> None:
    """Write what was refused, whole or not at all. Who cannot read it looks for himself."""
    with suppress(OSError):
        making = refusal.with_suffix(f".{os.getpid()}")
        making.write_text(json_text(error.problems), encoding="utf-8")
        os.replace(making, refusal)


def _refused(refusal: Path, before: tuple[int, int] | None) -> list[str]:
    """What was written there after `before` was looked at. An older refusal counts for nothing: a
    file that could not be read may be readable now."""
    if _mark(refusal) in (None, before):
        return []
    with suppress(OSError, ValueError):
        return json.loads(refusal.read_text(encoding="utf-8"))
    return []


def _put(making: Path, place: Path) -> None:
    """Rename; a damaged entry in its place goes first, a whole one stays."""
    for _ in range(2):
        try:
            os.rename(making, place)
            return
        except OSError:
            with suppress(DamagedError):
                if read_entry(place) is not None:
                    return
            _remove(place)
    os.rename(making, place)


def _remove(entry: Path) -> None:
    """Runs that have its files mapped keep what they map."""
    gone = Path(tempfile.mkdtemp(prefix=_MAKING, dir=entry.parent))
    with suppress(OSError):
        os.rename(entry, gone / "gone")
    shutil.rmtree(gone, ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    """What makers left who were killed, and refusals of long ago. One that has only begun may not
    hold its lock yet."""
    for refusal in folder.glob(".locks/*.refused"):
        with suppress(OSError):
            if time.time() - refusal.stat().st_mtime > OLD:
                refusal.unlink()
    for making in folder.glob(f"{_MAKING}*"):
        with suppress(OSError):
            if time.time() - making.stat().st_mtime < YOUNG:
                continue
        with suppress(OSError), (making / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(making, ignore_errors=True)


def _bound(folder: Path, newest: str) -> None:
    """Remove entries, the one longest unused first, until all are within `LIMIT`. One that a living
    run has mapped stays, and so does `newest`."""
    entries: list[tuple[float, int, Path]] = []
    for index in folder.glob(f"*/{INDEX}"):
        with suppress(OSError):
            size = sum(file.stat().st_size for file in index.parent.iterdir())
            entries.append((index.stat().st_mtime, size, index.parent))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= LIMIT:
            return
        if entry.name == newest or entry.name.startswith("."):
            continue
        with suppress(OSError), (folder / ".locks" / f"{entry.name}.use").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(entry)
            total -= size


@contextmanager
def _locked(path: Path, key: str) -> Iterator[bool]:
    """Wait for the lock; gives whether there is one at all."""
    with path.open("ab") as lock:
        started, told, held = time.monotonic(), False, False
        while not held:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if not told and time.monotonic() - started > PATIENCE:
                    note(f"another process makes the examples of {key[:12]}; waiting for it")
                    told = True
                time.sleep(0.05)
            except OSError:
                break
        yield held


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
