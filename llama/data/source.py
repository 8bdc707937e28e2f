"""Where rows come from: the files of a data set, and how a row is named."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

NAMED = 5
"""Row numbers that a message names."""


@dataclass(frozen=True)
class Source:
    """The files of a data set in the order in which they are read.

    A row's number goes on from file to file, so that one number is enough to name it:

        files a.json of 3 rows, b.json of 2      starts 0, 3
        number 4                                 row 1 of b.json
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...] = (0,)
    """What is added to the numbers of each file's own rows."""

    @property
    def name(self) -> str:
        """What a message about all of it begins with."""
        more = len(self.files) - 1
        return f"{self.files[0]}{f' and {more} more' if more else ''}"

    def numbers(self, rows: Sequence[int]) -> str:
        """`row 1`, or `rows 1, 5, 6 and more`; of several files, each number after its file."""
        named = list(dict.fromkeys(rows))
        parts = []
        for file, group in groupby(
            named[:NAMED], key=lambda row: bisect_right(self.starts, row - 1)
        ):
            own = [row - self.starts[file - 1] for row in group]
            where = f"{self.files[file - 1].name} " if len(self.files) > 1 else ""
            plural = "s" if len(own) > 1 or (len(self.files) == 1 and len(named) > 1) else ""
            parts.append(f"{where}row{plural} {', '.join(map(str, own))}")
        return "; ".join(parts) + (" and more" if len(named) > NAMED else "")
