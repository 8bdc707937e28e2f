"""Where messages come from: a person at a terminal, or lines of a file or pipe."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llama.notes import say

PROMPT = "> "
MARK_PASTES = "" if os.environ.get("TERM", "dumb") == "dumb" else "\x1b[?2004h"
"""Has a terminal say where a pasted text begins and ends (xterm), which the line that is read asks
for too, and takes back at its end."""
HOW_TO_LEAVE = "Ctrl-D or /exit leaves"


class Reader(Protocol):
    """Gives one message at a time."""

    place: str
    """Where the last message stands, ready to be put before what is wrong with it."""

    def read(self) -> str:
        """The next message; raises EOFError after the last."""
        ...


class Lines:
    """Each line a message; empty ones are none."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = enumerate(stream, start=1)
        self.place = ""

    def read(self) -> str:
        for number, line in self._lines:
            self.place = f"line {number}: "
            if line.strip():
                return line.rstrip("\n")
        raise EOFError


class Keyboard:
    """A line that can be edited, and earlier ones found again by the arrow keys. What is pasted is
    part of it with all its lines."""

    place = ""

    def __init__(self) -> None:
        keys = KeyBindings()
        keys.add("escape", "enter")(_new_line)
        self._session: PromptSession[str] = PromptSession(
            key_bindings=keys, enable_suspend=True, prompt_continuation=" " * len(PROMPT)
        )

    def read(self) -> str:
        while True:
            try:
                text = self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    say(HOW_TO_LEAVE)
                continue
            if text.strip():
                return text.strip("\n")


def _new_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def reader() -> Reader:
    """A `Keyboard` where a person is at both ends, else `Lines` of standard input."""
    return Keyboard() if at_terminal() else Lines(sys.stdin)


@contextmanager
def without_echo() -> Iterator[None]:
    """Around an answer: what is typed or pasted meanwhile waits for the next message, and is not
    written into the answer."""
    if not at_terminal():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    sys.stdout.write(MARK_PASTES)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def at_terminal() -> bool:
    """Whether a person types and reads here."""
    return sys.stdin.isatty() and sys.stdout.isatty()
