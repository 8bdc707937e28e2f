"""What libraries say goes to the run's log and not to its terminal: their warnings tell a user of
this program nothing to do. What they call an error is on the terminal too."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llama.notes import LOG, say


def log_file(folder: Path, rank: int) -> Path:
    """The log of a rank, in the run's folder: that of the main one, and one for each other rank
    that has something to say, so that they do not mix."""
    return folder / (f"log-rank-{rank}.txt" if rank else "log.txt")


@contextlib.contextmanager
def warnings_kept() -> Iterator[None]:
    """Warnings go to the log in here."""
    before = warnings.showwarning

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            before(message, category, filename, lineno, file, line)
        else:
            LOG.write(f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = keep
    try:
        yield
    finally:
        if warnings.showwarning is keep:
            warnings.showwarning = before


@contextlib.contextmanager
def libraries_kept() -> Iterator[None]:
    """Warnings, and what loggers would write to a standard stream, go to the log in here."""
    moved: list[tuple[logging.Logger, logging.Handler]] = []
    handler = _LogHandler(logging.WARNING)
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for logger in loggers:
        of_streams = [h for h in logger.handlers if _is_of_stream(h)]
        for old in of_streams:
            logger.removeHandler(old)
            moved.append((logger, old))
        if of_streams or logger is logging.root:
            logger.addHandler(handler)
    try:
        with warnings_kept():
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for logger, old in moved:
            logger.addHandler(old)


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        line = f"{record.name}: {record.levelname}: {text}"
        if record.levelno >= logging.ERROR:
            say(line)
        else:
            LOG.write(line)


def _is_of_stream(handler: logging.Handler) -> bool:
    """Whether it writes to a standard stream: not to a file, nor to what a test has put there."""
    if not isinstance(handler, logging.StreamHandler):
        return False
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return any(handler.stream is stream for stream in streams)
