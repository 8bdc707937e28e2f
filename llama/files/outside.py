"""Opening files that a user named: each way of failing is one `UserError` line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from llama.errors import UserError
from llama.files.inputs import file_problem
from llama.files.kinds import TEXTS

TOKENIZER_BYTES = 1 << 28
"""No tokenizer file is larger: a weights file named by mistake is not read into memory."""


def require_file(path: Path, what: str, kinds: Collection[str]) -> int:
    """The size in bytes of the regular file `path`, of one of `kinds` as far as its first bytes
    tell; `what` says what it was meant to be.

    What is not a regular file is not opened, so a FIFO cannot make this wait. Raises UserError.
    """
    if problem := file_problem(path, kinds):
        raise UserError(f"{path}: {problem}; give {what}")
    return path.stat().st_size


def read_bytes(
    path: Path, what: str, limit: int | None = None, kinds: Collection[str] = TEXTS
) -> bytes:
    """The whole of a regular file of one of `kinds`, of at most `limit` bytes. Raises UserError."""
    size = require_file(path, what, kinds)
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
