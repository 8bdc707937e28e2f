"""The rows as a table of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from llama.commands.doctor.judge import Check

_WIDTH = 100
_HEAD = ("check", "host", "found", "verdict", "what to do")
_WIDEST_HOST = 20
_MOST_NAMES = 3
"""More hosts than these are counted where all is well with them; the others are always named."""


def table(rows: Sequence[Check]) -> str:
    """Rows that differ in nothing but the host are one; cells too wide go on below."""
    cells = [_HEAD, *_joined(rows)]
    check, verdict = (max(len(row[i]) for row in cells) for i in (0, 3))
    host = min(_WIDEST_HOST, max(len(row[1]) for row in cells))
    rest = _WIDTH - check - host - verdict - 4 * 2
    found = min(rest - len(_HEAD[4]), max(len(row[2]) for row in cells))
    if any(row[4] for row in cells[1:]):
        found = min(found, rest // 2)
    widths = (check, host, found, verdict, rest - found)
    lines = [line for row in cells for line in _lines(row, widths)]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _joined(rows: Iterable[Check]) -> list[tuple[str, ...]]:
    """One row for the hosts of a check that are alike, in the order of the first of each."""
    hosts: dict[Check, list[str]] = {}
    of_check: dict[str, int] = {}
    for row in rows:
        alike = Check(row.check, "", row.found, row.verdict, row.todo)
        hosts.setdefault(alike, []).append(row.host)
        of_check[row.check] = of_check.get(row.check, 0) + 1
    joined = []
    for row, names in hosts.items():
        name = ", ".join(names)
        if 1 < len(names) == of_check[row.check]:
            name = f"all {len(names)}"
        elif len(names) > _MOST_NAMES and row.verdict == "ok":
            name = f"{len(names)} others"
        joined.append((row.check, name, row.found, row.verdict, row.todo))
    return joined


def _lines(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    wrapped = [
        textwrap.wrap(cell, width, break_on_hyphens=False) or [""]
        for cell, width in zip(cells, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    padded = [lines + [""] * (height - len(lines)) for lines in wrapped]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]
