"""Opening files that a user named: each way of failing is one `UserError` line."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama.errors import UserError

TOKENIZER_BYTES = 1 << 28
"""No tokenizer file is larger: a weights file named by mistake is not read into memory."""


def require_file(path: Path, what: str) -> int:
    """The size in bytes of the regular file `path`; `what` says what it was meant to be.

    Nothing is opened, so a FIFO cannot make this wait. Raises UserError.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give {what}{_nearest(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read ({reason}); give {what}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder; give {what}")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a regular file; give {what}")
    return status.st_size


def read_bytes(path: Path, what: str, limit: int | None = None) -> bytes:
    """The whole of a regular file of at most `limit` bytes. Raises UserError."""
    size = require_file(path, what)
    if limit is not None and size > limit:
        raise UserError(f"{path}: {size:,} bytes are too many; give {what}")
    if size == 0:
        raise UserError(f"{path}: is empty; give {what}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {what}") from None


@contextmanager
def refused(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever a parser raises on a malformed file into one `UserError` line.

    The parsers are other people's, in Rust and C++, and raise bare `Exception`, `RuntimeError` and
    pyo3's `PanicException`, which is no `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: {problem} ({lines[0][:200]})") from None


def _nearest(path: Path) -> str:
    """`; did you mean NAME?` for the sibling with the most similar name, or nothing."""
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
