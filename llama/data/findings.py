"""What became of a row on its way to ids that its owner might not expect: each thing is counted,
with the rows that it befell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama.data.source import Source


@dataclass(frozen=True)
class Finding:
    """One thing, as the report says it after its count: for a count of one, and for any other."""

    one: str
    many: str


CONTROL_TEXT = Finding(
    "control token written out in the rows is taken as text",
    "control tokens written out in the rows are taken as text",
)
LOST = Finding(
    "character was lost, for which the tokenizer has no token",
    "characters were lost, for which the tokenizer has no token",
)
EMPTY = Finding(
    "answer without text teaches its end token alone",
    "answers without text teach their end token alone",
)
CUT = Finding("answer is cut short and lost its end", "answers are cut short and lost their end")
GONE = Finding("answer is lost whole", "answers are lost whole")


def unread(field: str) -> Finding:
    """A field that nothing here reads."""
    return _rows_have(f'"{field}", which is not read')


def unwritten(field: str) -> Finding:
    """A field that the template was given."""
    return _rows_have(f'"{field}", which the template does not write')


def left_out(role: str) -> Finding:
    """A turn that the template was given."""
    rest = f"of the role {role} that the template leaves out"
    return Finding(f"turn {rest}", f"turns {rest}")


def open_end(role: str) -> Finding:
    """A conversation whose last turn is not an answer."""
    rest = f"a {role} turn, after the last answer, which is left out"
    return Finding(f"row ends on {rest}", f"rows end on {rest}")


def _rows_have(what: str) -> Finding:
    return Finding(f"row has {what}", f"rows have {what}")


class Findings:
    """A tally of findings, in the order of their first occurrence."""

    def __init__(self) -> None:
        self._rows: dict[Finding, list[int]] = {}
        self._counts: dict[Finding, int] = {}

    def add(self, finding: Finding, row: int, count: int = 1) -> None:
        if count:
            self._rows.setdefault(finding, []).append(row)
            self._counts[finding] = self._counts.get(finding, 0) + count

    def count(self, finding: Finding) -> int:
        return self._counts.get(finding, 0)

    def lines(self, source: Source) -> list[str]:
        """`2 rows have "category", which is not read (rows 1, 2)` and the like."""
        return [self._line(finding, rows, source) for finding, rows in self._rows.items()]

    def _line(self, finding: Finding, rows: Sequence[int], source: Source) -> str:
        count = self._counts[finding]
        what = finding.one if count == 1 else finding.many
        return f"{count:,} {what} ({source.numbers(rows)})"
