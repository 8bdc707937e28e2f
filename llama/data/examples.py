"""Rows to examples: ids and labels, at most `seq_len` long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llama.data.records import Problems
from llama.data.rows import Row
from llama.data.types import Example
from llama.errors import UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.templates import Template


@dataclass
class ExampleSet:
    """The examples of a file, and what became of its rows on the way."""

    path: Path
    seq_len: int
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Row number and reason of each row that gave no example."""
    truncated: list[int] = field(default_factory=list)
    """Numbers of the rows cut off at `seq_len`, skipped ones included."""


def build_examples(
    path: Path, rows: Iterable[Row], template: Template, tokenizer: Tokenizer, seq_len: int
) -> ExampleSet:
    """Tokenise `rows`, read from `path`.

    A conversation is written by `template`; one longer than `seq_len` is cut on the right, and one
    with no label left is skipped: both are noted. A plain text is BOS, text, EOS with every
    position supervised, and gives as many examples as it needs.

    Raises UserError with every row that the template cannot express.
    """
    assert seq_len >= 2, "a position predicts the next one"
    built = ExampleSet(path, seq_len)
    problems = Problems(path)
    for row in rows:
        built.rows += 1
        if row.text is not None:
            pieces = list(_text_examples(row.text, row.number, tokenizer, seq_len))
            built.examples += pieces
            if not pieces:
                built.skipped.append((row.number, "its text has no token"))
            continue
        try:
            ids, labels = template.render(row.messages, tokenizer)
        except UserError as error:
            problems.add(f"row {row.number}", str(error))
            continue
        if len(ids) > seq_len:
            built.truncated.append(row.number)
        example = Example(ids[:seq_len], labels[:seq_len], row.number)
        if example.supervised:
            built.examples.append(example)
        else:
            reason = (
                f"its prompt alone has {seq_len} tokens or more" if ids[seq_len:] else "no label"
            )
            built.skipped.append((row.number, reason))
    problems.raise_any()
    return built


def _text_examples(text: str, number: int, tokenizer: Tokenizer, seq_len: int) -> Iterator[Example]:
    """Pieces of BOS + text + EOS. Each begins with the last token of the one before, as no piece
    predicts its first: so every token but the very first is predicted exactly once.

        seq_len 4    <s> a b c | c d e f | f </s>
    """
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids += [*tokenizer.encode(text), tokenizer.eos_id]
    for start in range(0, len(ids) - 1, seq_len - 1):
        piece = ids[start : start + seq_len]
        yield Example(piece, list(piece), number)
