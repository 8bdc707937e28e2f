"""What the user is told before a run has its own report: once, by the first rank. And the log of a
run: everything that was said, on the terminal or not, each line with its time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

WAITING = 1000
"""Lines that are kept for a log until its file is known."""


class Log:
    """Lines with their time, in a file once there is one.

    A line goes to the system whole, in one write that appends, as soon as it is said: a process
    that is killed loses none, and processes that share a file do not mix theirs. A log that cannot
    be written ends no run: it is given up.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a handler of signals may speak within a line
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._descriptor: int | None = None
        self.path: Path | None = None
        """The file, once it is known."""

    def begin(self, path: Path) -> None:
        """Write to `path` from now on, behind what is there, beginning with what has waited. The
        file is made when there is something to write."""
        with self._lock:
            self.end()
            self.path = path
            while self._waiting and self.path is not None:
                self._put(self._waiting.popleft())

    def write(self, text: str) -> None:
        """Each line of `text`."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now}  {line}\n" for line in text.splitlines())
        data = lines.encode(errors="backslashreplace")
        with self._lock:
            if self.path is None:
                self._waiting.append(data)
            else:
                self._put(data)

    def end(self) -> None:
        """Close the file, if there is one."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = self.path = None

    def _put(self, data: bytes) -> None:
        assert self.path is not None
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, 0o666)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                self.end()
            self.path = None


_WIPE = "\r\x1b[K"
"""To the start of the terminal's line, and everything behind it away."""
LOG = Log()
"""The log of this process's run."""


def is_first_rank() -> bool:
    """By what the launcher said, before any rank has met another."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Lines on standard error, whatever the rank, in one write; and in the log. A bar that stands
    on the terminal's last line is wiped off first: it is drawn again at its next step."""
    LOG.write(text)
    is_drawn_on = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    sys.stderr.write(f"{_WIPE if is_drawn_on else ''}{text}\n")
    sys.stderr.flush()


def note(text: str) -> None:
    """A line on standard error, of the first rank; the others have it in their logs alone."""
    if is_first_rank():
        say(text)
    else:
        LOG.write(text)


def say_where_the_log_is() -> None:
    """Above what ended a run, on the first rank, if the run has a log by then. The last line is to
    say why it ended."""
    if LOG.path is not None and is_first_rank():
        print(f"log: {LOG.path}", file=sys.stderr, flush=True)
