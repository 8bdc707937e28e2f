"""The settings of `data`, and every check of them that needs no rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from llama.settings.data_sets import check_plain, check_sets, check_split
from llama.settings.model import RowOptions
from llama.settings.options.marks import POSITIONAL
from llama.settings.validate import at_least, check_model, check_seed

_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions):
    """Settings of `data`. Of the model only the tokenizer and its template are used."""

    data: list[Path] = field(default_factory=list, metadata=POSITIONAL)
    """Training rows, as train takes them; none means the 200 bundled examples."""
    eval_data: list[Path] = field(default_factory=list)
    """Held-out rows, as train takes them; none means the bundled set where --data is also none."""
    eval_split: float | None = None
    """Hold out this share of --data, as train does: below 1 a share of the examples, else how
    many."""
    seed: int = 0
    """Seed by which --eval_split chooses, as in train."""
    seq_len: int = 1024
    """Tokens of one row of a batch, as in train."""
    pack: bool = True
    """Whether examples share a row, as in train."""
    rows: tuple[str, ...] = ()
    """Show these rows, as 3,17, by the numbers that messages give them (lines of a JSONL file; from
    file to file they go on); none means three: the first, one of median length, the longest."""
    json: bool = False
    """Whether standard output is one JSON object, with the rows that are shown whole."""


def check_data(options: DataOptions) -> list[str]:
    """Every problem of `data`'s settings; whether there are such rows comes later."""
    return [
        *check_model(options),
        *check_seed(options.seed),
        *at_least(2, seq_len=options.seq_len),
        *check_sets(options.data),
        *check_plain("eval_data", options.eval_data),
        *check_split(options.eval_split, options.eval_data),
        *(
            f"--rows: expected numbers of rows from 1 on, as 3,17, found {text!r}"
            for text in options.rows
            if not _NUMBER.fullmatch(text) or int(text) == 0
        ),
    ]
