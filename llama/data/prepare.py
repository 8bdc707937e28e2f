"""A data file to packed rows, in one call: read, rendered, linted, packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama.data.examples import build_examples
from llama.data.lint import LintReport, lint
from llama.data.packing import PackedRow, pack_examples
from llama.data.rows import Row, read_rows
from llama.data.types import Example
from llama.files.inputs import sha256_of
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.templates import Template


@dataclass(frozen=True)
class Prepared:
    """A data file, ready to be cut into batches."""

    path: Path
    rows: list[Row]
    examples: list[Example]
    """In the order of the rows."""
    packed: list[PackedRow]
    report: LintReport
    sha256: str


def prepare(
    path: Path,
    template: Template,
    tokenizer: Tokenizer,
    seq_len: int,
    pack: bool,
    first: int | None = None,
) -> Prepared:
    """Of the `first` rows alone, if that is given. Raises `UserError` with all that is wrong with
    the file."""
    rows = read_rows(path)[:first]
    built = build_examples(path, rows, template, tokenizer, seq_len)
    report = lint(built, tokenizer)
    return Prepared(
        path=path,
        rows=rows,
        examples=built.examples,
        packed=pack_examples(built.examples, seq_len, pack),
        report=report,
        sha256=sha256_of(path),
    )
