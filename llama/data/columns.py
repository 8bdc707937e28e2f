"""Renames the columns of rows, before their form is chosen: what `--columns` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama.files.inputs import nearest

Columns = tuple[tuple[str, str], ...]
"""`(name here, name in the rows)`: `(("output", "answer"),)` reads `answer` as `output`. A name
`messages.role` is that of a field of each turn in `messages`."""
SHOWN = 12
"""Columns that a message names."""


class Renamer:
    """Renames the columns of the rows of one data set, and notes which of them there were. Two that
    have read parts of it are merged."""

    def __init__(self, columns: Columns) -> None:
        self._whole = [pair for pair in columns if "." not in pair[0]]
        self._nested = [(*new.split(".", 1), old) for new, old in columns if "." in new]
        self.met: set[str] = set()
        """Names on the right-hand side that a row had."""
        self.others: dict[str, None] = {}
        """Every other column, and field of a turn, in the order of their first occurrence."""

    def renamed(self, record: dict[str, Any]) -> tuple[dict[str, Any], Columns]:
        """`record` by the new names, and the columns that it does not have and for which it is read
        by its own of the new name. What a column that is renamed replaces is kept, under a name
        that no form reads and that says so. A null is no column: a table has one wherever a row has
        nothing, and JSON is to mean the same."""
        if not (self._whole or self._nested):
            return record, ()
        row, own = self._with(record, self._whole)
        of_turns: dict[tuple[str, str], None] = {}
        for field in dict.fromkeys(field for field, _, _ in self._nested):
            pairs = [(new, old) for of, new, old in self._nested if of == field]
            if isinstance(row.get(field), list):
                turns = row[field] = list(row[field])
                for at, turn in enumerate(turns):
                    if isinstance(turn, dict):
                        turns[at], own_names = self._with(turn, pairs)
                        of_turns |= dict.fromkeys(own_names)
        named = [(f"{new} of a turn", f"{old} of a turn") for new, old in of_turns]
        return row, (*own, *named)

    def _with(
        self, record: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        old_names = {old for _, old in pairs}
        given = {old for old in old_names if record.get(old) is not None}
        own: list[tuple[str, str]] = []
        self.met |= given
        row = {name: value for name, value in record.items() if name not in old_names}
        self.others |= dict.fromkeys(map(str, row))
        for new, old in pairs:
            if old not in given:
                if row.get(new) is not None:
                    own.append((new, old))
                elif old in record:
                    row[new] = None  # Then it is this field that is said to be missing.
                continue
            if row.get(new) is not None:
                row[f"{new} (replaced by --columns)"] = row.pop(new)
            row[new] = record[old]
        return row, own

    def merge(self, later: Renamer) -> None:
        """Take in what was met in the rows that follow."""
        self.met |= later.met
        self.others |= later.others

    def problems(self, place: str) -> list[str]:
        """A line for each column that was to be renamed and that no row of `place` has."""
        pairs = [*self._whole, *((f"{field}.{new}", old) for field, new, old in self._nested)]
        names = ", ".join(list(self.others)[:SHOWN])
        more = " and more" if len(self.others) > SHOWN else ""
        return [
            f"{place}: --columns {new}={old}: no row has {old!r} (they have {names}{more})"
            f"{nearest(old, self.others)}"
            for new, old in pairs
            if old not in self.met
        ]
