"""Answers shown while they are given: one, or two beside or below each other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Protocol

from llama.commands.chat.layout import Columns, Flow, fits_two
from llama.commands.chat.speaker import Pieces
from llama.commands.chat.stopping import StopKey
from llama.commands.terminal import Terminal
from llama.launch.streams import lost_output

Answers = Mapping[str, Pieces]
"""The name of each side to the pieces of its answer."""


class Verbatim:
    """In the place of a `Flow`: text that goes to a file or pipe stays as it is."""

    def feed(self, piece: str) -> str:
        return piece

    def end(self) -> str:
        return ""


class _Layout(Protocol):
    def feed(self, piece: str, /) -> str: ...

    def end(self) -> str: ...


def show(answers: Answers, terminal: Terminal | None, stop: StopKey) -> None:
    """Write `answers` to standard output until they end, or `stop` is pressed: it ends one answer,
    or both that stand side by side. They are closed however that comes. Without a `terminal` they
    are text and nothing else."""
    with ExitStack() as stack:
        for pieces in answers.values():
            stack.enter_context(closing(pieces))
        if len(answers) > 1 and terminal is not None and fits_two(terminal):
            _beside(answers, terminal, stop)
        else:
            _below(answers, terminal, stop)


def _beside(answers: Answers, terminal: Terminal, stop: StopKey) -> None:
    columns = Columns(terminal)
    _write(_bold(columns.heading(list(answers)), terminal))
    running = dict(enumerate(answers.values()))
    try:
        with stop.answering():
            _rows(running, columns, stop)
    finally:
        for side in running:
            _write(columns.end(side))


def _rows(running: dict[int, Pieces], columns: Columns, stop: StopKey) -> None:
    """A piece of each in turn; those that end are taken out of `running`."""
    while running and not _ends(stop):
        for side, pieces in list(running.items()):
            piece = next(pieces, None)
            if piece is None:
                del running[side]
                _write(columns.end(side))
            else:
                _write(columns.feed(side, piece))


def _below(answers: Answers, terminal: Terminal | None, stop: StopKey) -> None:
    for name, pieces in answers.items():
        if len(answers) > 1:
            _write(_bold(f"{name}:\n", terminal))
        layout: _Layout = Verbatim() if terminal is None else Flow(terminal)
        try:
            with stop.answering():
                for piece in pieces:
                    _write(layout.feed(piece))
                    if _ends(stop):
                        break
        finally:
            _write(layout.end() + "\n")


def _ends(stop: StopKey) -> bool:
    return stop.pressed or lost_output() is not None


def _bold(text: str, terminal: Terminal | None) -> str:
    line = text.removesuffix("\n")
    return f"\x1b[1m{line}\x1b[0m\n" if terminal is not None and terminal.colour else text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
