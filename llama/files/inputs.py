"""What every reader of the user's input shares: whether a file can be read and is of the wanted
kind, small text files, hashes, and the nearest right name."""

from __future__ import annotations

import codecs
import difflib
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from llama.errors import UserError
from llama.files.kinds import HEAD, TEXTS, other_kind

TEXT_LIMIT = 1 << 20
"""Bytes: a settings file larger than this is some other file given by mistake."""
_CHUNK = 1 << 22
NOT_THERE = "does not exist"
_ALIKE, _ALIKE_OF_OTHERS = 0.65, 0.7
"""How alike two files' names are, of 1, for one to be suggested in place of the other: where they
end alike, and where not."""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?` for the known name closest to `word`, before all others one that is
    `word` with more behind it; nothing where none is close."""
    names = {name.lower(): name for name in known}
    longer = [name for name in names if len(word) > 1 and name.startswith(word.lower())]
    found = difflib.get_close_matches(word.lower(), longer or names, n=1, cutoff=0.5)
    found = found or longer[:1]
    return f"; did you mean {prefix}{names[found[0]]}?" if found else ""


def not_found(path: Path, fits: Callable[[Path], bool] | None = None) -> str:
    """`does not exist`, and the name beside it that comes close, of what `fits` where that is said.
    Endings make no names alike: half of the files of a folder may have the same."""
    try:
        beside = [entry for entry in path.parent.iterdir() if fits is None or fits(entry)]
    except OSError:
        return f"does not exist, nor can its folder {path.parent} be read"
    names = [entry.name for entry in beside if _is_near(path, entry)]
    return NOT_THERE + nearest(path.name, names, f"{path.parent}/".removeprefix("./"))


def _is_near(path: Path, entry: Path) -> bool:
    stem, other = path.stem.lower(), entry.stem.lower()
    alike = difflib.SequenceMatcher(None, stem, other).ratio()
    return (len(stem) > 1 and other.startswith(stem)) or alike >= (
        _ALIKE if path.suffix == entry.suffix else _ALIKE_OF_OTHERS
    )


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def file_problem(
    path: Path,
    kinds: Collection[str] | None = None,
    fits: Callable[[Path], bool] | None = None,
) -> str | None:
    """Why `path` cannot be read as a file, or is plainly of another kind than `kinds` (names of
    `llama.files.kinds`; None: only whether it can be read is asked); else None. `fits` as
    `not_found` takes it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, which does not exist"
        return not_found(path, fits)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    if stat.S_ISDIR(mode):
        return "is a folder; a file is expected"
    if not stat.S_ISREG(mode):  # a FIFO would block, and could be read by one rank only
        return "is not a regular file"
    if not os.access(path, os.R_OK):
        return "cannot be read: no permission"
    if kinds is None:
        return None
    try:
        with path.open("rb") as file:
            return other_kind(file.read(HEAD), kinds)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def filled_file_problem(path: Path, kinds: Collection[str]) -> str | None:
    """The line that says why `path` cannot be read as a file of one of `kinds` with something in
    it, or None."""
    problem = file_problem(path, kinds)
    if problem is None and path.stat().st_size == 0:
        problem = "the file is empty"
    return problem and f"{path}: {problem}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hex."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file; raises `UserError` where that is not what `path` is."""
    if problem := file_problem(path, TEXTS):
        raise UserError(f"{path}: {problem}")
    try:
        with path.open("rb") as file:
            content = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > TEXT_LIMIT:
        raise UserError(f"{path}: larger than {TEXT_LIMIT} bytes: not a settings file")
    return decoded(content, str(path))


def decoded(content: bytes, name: str, advice: str = "") -> str:
    """`content`, which a user calls `name`, as text without its mark of UTF-8. Raises `UserError`
    with the line that is none, and `advice` behind it."""
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}: line {line}: not UTF-8 text{advice}") from None


def new_file_problem(path: Path) -> str | None:
    """Why nothing can be written as the file `path`, which is to be a new one, or None."""
    if path.is_dir():
        return f"{path} is a folder; a file is expected"
    if path.is_file() and path.stat().st_size:
        return f"{path} holds something already; give another name, or remove it"
    where = path if path.exists() else path.absolute().parent
    if not where.exists():
        return f"{where} {not_found(where)}"
    return None if os.access(where, os.W_OK) else f"{where} cannot be written to"
