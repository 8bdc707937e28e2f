"""What became of a row on its way to ids that its owner might not expect: each thing is counted,
with the first of the rows that it befell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llama.data.source import NAMED, Source


@dataclass
class Tallied:
    """A count, and as many of the rows counted as a message names: of the same size for any number
    of rows."""

    count: int = 0
    rows: list[int] = field(default_factory=list)
    """The first ones, each once; one more than is named, so that a message knows of more."""

    def add(self, row: int, count: int = 1) -> None:
        self.count += count
        self._name([row])

    def merge(self, later: Tallied) -> None:
        """Take in what was counted of the rows that follow."""
        self.count += later.count
        self._name(later.rows)

    def _name(self, rows: Iterable[int]) -> None:
        for row in rows:
            if len(self.rows) <= NAMED and row not in self.rows:
                self.rows.append(row)


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


def own(new: str, old: str) -> Finding:
    """A row without the column that `--columns` renames."""
    return Finding(
        f'row has no "{old}" and is read by its own "{new}"',
        f'rows have no "{old}" and are read by their own "{new}"',
    )


def unwritten(field: str) -> Finding:
    """A field that the template was given."""
    return _rows_have(f'"{field}", which the template does not write')


def other_end(token: str, eos: str) -> Finding:
    """A template that ends answers with a token at which nothing stops."""
    rest = (
        f'"{token}" after answers by the template, where the last is taught to end with "{eos}", '
        f'others with nothing: to teach "{token}" and stop at it, list its id in eos_token_id of '
        "the model's generation_config.json"
    )
    return _rows_have(rest)


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
        self._found: dict[Finding, Tallied] = {}

    def add(self, finding: Finding, row: int, count: int = 1) -> None:
        if count:
            self._found.setdefault(finding, Tallied()).add(row, count)

    def count(self, finding: Finding) -> int:
        return self._found[finding].count if finding in self._found else 0

    def merge(self, later: Findings) -> None:
        """Take in what was found in the rows that follow."""
        for finding, tallied in later._found.items():
            self._found.setdefault(finding, Tallied()).merge(tallied)

    def lines(self, source: Source) -> list[str]:
        """`2 rows have "category", which is not read (rows 1, 2)` and the like."""
        return [self._line(finding, tallied, source) for finding, tallied in self._found.items()]

    def _line(self, finding: Finding, tallied: Tallied, source: Source) -> str:
        what = finding.one if tallied.count == 1 else finding.many
        return f"{tallied.count:,} {what} ({source.numbers(tallied.rows)})"

    def as_json(self) -> list[Any]:
        """For a file, from which `from_json` makes the same again."""
        return [[f.one, f.many, t.count, t.rows] for f, t in self._found.items()]

    @staticmethod
    def from_json(written: list[Any]) -> Findings:
        findings = Findings()
        for one, many, count, rows in written:
            findings._found[Finding(one, many)] = Tallied(count, rows)
        return findings
