"""Rows to examples: ids and labels, at most `seq_len` long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama.data.rows import Row
from llama.data.types import Example
from llama.errors import UserError, raise_if
from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.segments import plain_text
from llama.tokenizer.templates import Template

NAMED = 5
"""Row numbers that a message names."""
CHARACTERS = 256
"""Twice those of the longest token that a LLaMA tokenizer has."""
REFUSED = 20
"""Rows that the template cannot express after which the rest are not looked at."""


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

    Raises UserError with the rows that the template cannot express, one line for each reason; it
    stops looking after the first few.
    """
    assert seq_len >= 2, "a position predicts the next one"
    built = ExampleSet(path, seq_len)
    refused: dict[str, list[int]] = {}
    for row in rows:
        built.rows += 1
        if row.text is not None:
            pieces = list(_text_examples(row.text, row.number, tokenizer, seq_len))
            built.examples += pieces
            if not pieces:
                built.skipped.append((row.number, "its text has no token"))
            continue
        try:
            ids, labels = _rendered(row.messages, template, tokenizer, seq_len)
        except UserError as error:
            refused.setdefault(str(error), []).append(row.number)
            if sum(map(len, refused.values())) > REFUSED:
                break
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
    raise_if([f"{path}: {numbers(at)}: {reason}" for reason, at in refused.items()])
    return built


def _rendered(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, seq_len: int
) -> tuple[list[int], list[int]]:
    """What `template` makes of `messages`, as far as it is kept. Of a content far longer than
    `seq_len` tokens can be, only the start is tokenised: the whole of ten megabytes would take
    seconds and a gigabyte. (Should a token be longer yet, nothing is saved.)"""
    most = CHARACTERS * seq_len
    if any(len(message["content"]) > most for message in messages):
        cut: list[Message] = [{**m, "content": m["content"][:most]} for m in messages]
        ids, labels = template.render(cut, tokenizer)
        if len(ids) > seq_len + 1:
            return ids, labels
    return template.render(messages, tokenizer)


def numbers(rows: Sequence[int]) -> str:
    """`row 1`, or `rows 1, 5, 6 and more`."""
    named = ", ".join(str(number) for number in rows[:NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {named}{' and more' if len(rows) > NAMED else ''}"


def _text_examples(text: str, number: int, tokenizer: Tokenizer, seq_len: int) -> Iterator[Example]:
    """Pieces of BOS + text + EOS. Each begins with the last token of the one before, as no piece
    predicts its first: so every token but the very first is predicted exactly once.

        seq_len 4    <s> a b c | c d e f | f </s>
    """
    ids = plain_text(text, tokenizer)
    for start in range(0, len(ids) - 1, seq_len - 1):
        piece = ids[start : start + seq_len]
        yield Example(piece, list(piece), number)
