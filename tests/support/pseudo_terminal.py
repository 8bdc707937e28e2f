"""A command at a terminal of a chosen size, typed to and read from as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.model_files import ROOT
from tests.support.tiny_runs import of_one_thread

PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()=>].?)|\r")


def pasted(text: str) -> str:
    """`text` as a terminal hands on what is pasted (xterm's bracketed paste)."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """One process with a terminal of its own."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._pid = pid
        self._status: int | None = None
        self._descriptor = descriptor
        self.text = ""
        """All that it showed, without what moves the cursor or colours."""
        self._at = 0
        self._bytes = b""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, pattern: str) -> str:
        """Read until `pattern`, a regular expression, comes after what was read for earlier calls;
        gives what came in between, with the match."""
        end = time.monotonic() + PATIENCE
        while (found := re.compile(pattern).search(self.text, self._at)) is None:
            assert time.monotonic() < end and self._more(), f"no {pattern!r} in {self.text!r}"
        between = self.text[self._at : found.end()]
        self._at = found.end()
        return between

    def ended(self) -> int:
        """The exit status, once it has ended."""
        end = time.monotonic() + PATIENCE
        while self._more():
            assert time.monotonic() < end, self.text
        return self._waited()

    def _waited(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status

    def close(self) -> None:
        """Kill it, if it was not seen to end: until it is waited for, its number is its own."""
        if self._status is None:
            os.kill(self._pid, 9)
            self._waited()
        os.close(self._descriptor)

    def _more(self) -> bool:
        if not select.select([self._descriptor], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the other end is closed
            return False
        self._bytes += data
        self.text = _ESCAPES.sub("", self._bytes.decode(errors="ignore"))
        return bool(data)


@contextmanager
def at_terminal(*words: str | Path, columns: int) -> Iterator[Terminal]:
    """Start Python on `words` at a terminal of so many columns; killed in the end, if need be."""
    pid, descriptor = pty.fork()
    if pid == 0:
        environment = of_one_thread() | {"TERM": "xterm", "LANG": "C.UTF-8"}
        environment |= {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
        for name in ("COLUMNS", "LINES"):  # which would count before the terminal's own
            environment.pop(name, None)
        os.chdir(ROOT)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execve(sys.executable, [sys.executable, *map(str, words)], environment)
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        terminal.close()
