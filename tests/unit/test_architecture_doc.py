"""The drawing of docs/architecture.md shows the floors that the imports are held to."""

from __future__ import annotations

import re

from tests.support.model_files import ROOT
from tests.unit.test_imports import FLOORS

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROOM = re.compile(r"\| (\w+) +\| (\S.*?) +\|")


def drawn() -> list[list[tuple[str, str]]]:
    """Of each floor, top down, its rooms: name and what is said of it. A rule ends a floor."""
    (drawing,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    _, *floors = re.split(r"^ *\+-+\+-+\+\n", drawing, flags=re.MULTILINE)
    return [ROOM.findall(floor) for floor in floors if floor]


def test_the_drawing_is_the_house() -> None:
    names = [sorted(name for name, _ in floor) for floor in drawn()]
    assert names == [sorted(floor) for floor in FLOORS]


def test_nothing_in_the_drawing_is_left_unread() -> None:
    """Else a room could be drawn in a way that the test above does not see."""
    rows = [line for line in PAGE.splitlines() if line.startswith("  | ")]
    assert len(rows) == sum(map(len, drawn())) == sum(map(len, FLOORS))
