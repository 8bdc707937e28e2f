"""Work that is timed in processes of its own: started in a session of theirs, with a time limit,
and with one JSON object as its result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

GIB = 2**30
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL of a sub-run that has run out of time."""


@dataclass(kw_only=True)
class SubRun:
    """Some processes to start, and what came of them."""

    command: list[str]
    """After the interpreter."""
    environment: dict[str, str] = field(default_factory=dict)
    """On top of this process's own."""
    seconds: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = "not run: the budget was spent"

    def where(self) -> tuple[Path | None, dict[str, str]]:
        """The folder that it starts in, None for this process's, and its environment."""
        return None, {**os.environ, **self.environment}

    def run(self, timeout: float) -> None:
        started = time.monotonic()
        folder, environment = self.where()
        piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        piped["start_new_session"] = True  # so that all it starts can be ended
        command = [sys.executable, *self.command]
        child = subprocess.Popen(command, cwd=folder, env=environment, **piped)
        try:
            out, errors = child.communicate(timeout=timeout)
            self._read(child.returncode, out, errors)
        except subprocess.TimeoutExpired:
            _, errors = end(child)
            self.error = f"no result after {timeout:.0f} s"
            self._say(errors)
        self.seconds = round(time.monotonic() - started, 1)

    def _read(self, status: int, out: str, errors: str) -> None:
        """The last JSON object on standard output is the result, whatever the status: a proof that
        fails tells what it found."""
        lines = errors.strip().splitlines()
        printed = [line for line in out.splitlines() if line[:1] == "{" and line[-1:] == "}"]
        if printed:
            self.result = json.loads(printed[-1])
        if status == 0 and printed:
            self.error = None
        elif memory := [line for line in lines if "OutOfMemoryError" in line]:
            self.error = f"out of memory: {memory[-1]}"
        else:
            self.error = f"exit status {status}: {reason(lines)}"
        if self.error:
            self._say(errors)

    def _say(self, errors: str) -> None:
        print("\n".join(errors.strip().splitlines()[-25:]), file=sys.stderr)


def reason(lines: list[str]) -> str:
    """What a reader wants of a standard error: a launcher has the last lines with a report of its
    own, after the exception of the rank that failed."""
    named = [line for line in lines if "Error: " in line or line.lstrip().startswith("error: ")]
    own = [line for line in named if "ChildFailedError" not in line]
    return (own or lines or ["nothing on stderr"])[-1].strip()


def end(child: subprocess.Popen[str]) -> tuple[str, str]:
    """End a child and everything below it: ranks are in sessions of their own, which a signal to
    the child's group does not reach. Gives what it printed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        everything = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGTERM)  # a launcher passes it on
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return child.communicate()


def gib(count: float | None) -> str:
    return f"{count / GIB:.2f}" if count else "-"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; short rows are filled up."""
    lines = [head, ["---"] * len(head), *rows]
    filled = [cells + [""] * (len(head) - len(cells)) for cells in lines]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in filled
    )
