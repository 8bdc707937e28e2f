"""Data files to packed rows, in one call: read, rendered, linted, packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama.data.columns import Columns
from llama.data.examples import build_examples
from llama.data.lint import LintReport, lint
from llama.data.packing import PackedRow, pack_examples
from llama.data.rows import Row, read_rows
from llama.data.types import Example
from llama.files.shards import sha256_of_files
from llama.tokenizer.base import Template, Tokenizer


@dataclass(frozen=True)
class Prepared:
    """The data of one option, ready to be cut into batches."""

    files: tuple[Path, ...]
    rows: list[Row]
    examples: list[Example]
    """In the order of the rows."""
    packed: list[PackedRow]
    report: LintReport
    sha256: str
    """Of the files in their order."""


def prepare(
    paths: Sequence[Path],
    template: Template,
    tokenizer: Tokenizer,
    seq_len: int,
    pack: bool,
    first: int | None = None,
    columns: Columns = (),
) -> Prepared:
    """Of the `first` rows alone, if that is given; `columns` of the rows are renamed. Raises
    `UserError` with all that is wrong with the files."""
    data = read_rows(paths, columns)
    rows = data.rows[:first]
    built = build_examples(data.source, rows, template, tokenizer, seq_len)
    report = lint(built, tokenizer)
    return Prepared(
        files=data.source.files,
        rows=rows,
        examples=built.examples,
        packed=pack_examples(built.examples, seq_len, pack),
        report=report,
        sha256=sha256_of_files(data.source.files),
    )
