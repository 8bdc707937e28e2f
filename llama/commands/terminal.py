"""Text on a terminal: colour where there is any, lines that fit, nothing that moves the cursor."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

NARROWEST = 40
"""Columns that a page with figures and tables needs; on a terminal that says it has fewer it is
written as if it had these."""


@dataclass(frozen=True)
class Terminal:
    """What standard output can show."""

    width: int
    colour: bool
    unicode: bool
    """Whether it takes more than ASCII."""


def terminal_of(
    stream: TextIO, environ: Mapping[str, str] = os.environ, narrowest: int = NARROWEST
) -> Terminal:
    """Colour only where a person reads: on a terminal that is not `dumb`, unless NO_COLOR (see
    no-color.org) is set to anything."""
    colour = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    encoding = (stream.encoding or "ascii").lower().replace("-", "")
    width = shutil.get_terminal_size((100, 24)).columns
    return Terminal(max(width, narrowest), colour, encoding.startswith("utf"))


def this_terminal(narrowest: int = NARROWEST) -> Terminal:
    """Standard output as it is now, taken to have at least `narrowest` columns."""
    return terminal_of(sys.stdout, narrowest=narrowest)


def width_of(character: str) -> int:
    """Columns that a character takes: 2 of East Asian wide ones and most emoji, 0 of those that
    are put upon another."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def visible(text: str, unicode: bool = True) -> str:
    """`text` with what a terminal would obey, and not show, written out: `\\x1b`, `\\t`; lines stay
    lines. Without `unicode`, so is all that is not ASCII."""
    return "".join(c if c == "\n" or _is_shown(c, unicode) else _written_out(c) for c in text)


def _is_shown(character: str, unicode: bool) -> bool:
    if not unicode and not character.isascii():
        return False
    # Marks of direction (Cf) turn a line round; the joiner within an emoji is of that kind too.
    shown = character.isprintable() or unicodedata.category(character) == "Zs"
    return shown or character == "\u200d"


def _written_out(character: str) -> str:
    return repr(character)[1:-1] if not character.isprintable() else ascii(character)[1:-1]


def middle_out(text: str, most: int) -> str:
    """`text`, or its beginning and its end with the number of characters between them, where it has
    many more than `most`."""
    head, tail = 2 * most // 3, most // 3
    left_out = len(text) - head - tail
    if left_out <= most // 4:
        return text
    return f"{text[:head]} [... {left_out:,} characters ...] {text[-tail:]}"


Cell = tuple[str, str]
"""A character, and the SGR codes that it is written with (empty for none)."""


def wrapped(cells: Iterable[Cell], width: int) -> Iterator[list[Cell]]:
    """Lines of at most `width` columns: broken at line ends, else after the last space, else
    within a word."""
    line: list[Cell] = []
    taken = 0
    for cell in cells:
        if cell[0] == "\n":
            yield line
            line, taken = [], 0
            continue
        wide = width_of(cell[0])
        if taken + wide > width:
            at = next((i for i in range(len(line), 0, -1) if line[i - 1][0] == " "), len(line))
            yield line[:at]
            line = line[at:]
            taken = sum(width_of(character) for character, _ in line)
        line.append(cell)
        taken += wide
    yield line


def painted(line: Iterable[Cell], colour: bool) -> str:
    """A line as it is written."""
    parts: list[str] = []
    now = ""
    for character, codes in line:
        if colour and codes != now:
            parts.append(f"\x1b[0m\x1b[{codes}m" if codes else "\x1b[0m")
            now = codes
        parts.append(character)
    return "".join(parts) + ("\x1b[0m" if now else "")


def paragraph(text: str, terminal: Terminal, indent: str = "  ") -> str:
    """`text` wrapped, its lines after the first indented."""
    cells = [(character, "") for character in visible(text, terminal.unicode)]
    lines = wrapped(cells, terminal.width - len(indent))
    return f"\n{indent}".join(painted(line, colour=False).rstrip() for line in lines)
