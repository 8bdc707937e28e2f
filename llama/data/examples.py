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
"""A message that concerns many rows names the numbers of the first so many."""
CHARACTERS = 256
"""More than any token stands for, as far as we know: the longest in LLaMA's tokenizers has half as
many."""
REFUSED = 20
"""After more rows than this that the template cannot express, the rest are not looked at: they are
most likely of the same kind, and the user needs no longer list."""


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

    `seq_len` is in tokens, at least 2. Raises UserError with the rows that the template cannot
    express, one line for each reason; after `REFUSED` of them it stops looking.
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
            was_cut = len(ids) > seq_len
            reason = f"its prompt alone has {seq_len} tokens or more" if was_cut else "no label"
            built.skipped.append((row.number, reason))
    raise_if([f"{path}: {numbers(at)}: {reason}" for reason, at in refused.items()])
    return built


def _rendered(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, seq_len: int
) -> tuple[list[int], list[int]]:
    """`(ids, labels)` that `template` makes of `messages`, right in the first `seq_len`; there are
    more than `seq_len` of them if the whole has more.

    To tokenise a content of ten megabytes takes seconds and a gigabyte, to keep its first thousand
    tokens. So each content is first cut to as many characters as `seq_len` of the longest tokens
    have. What that gives is returned if it has more than `seq_len` tokens with one to spare, since
    the cut may have changed the last. Else, as where one token stands for more characters than we
    know of, the whole is tokenised."""
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
    """BOS + text + EOS in pieces of at most `seq_len` tokens. The model predicts every token of a
    piece but its first. So each piece begins with the last token of the one before, and every token
    of the whole but the very first is predicted exactly once.

        seq_len 4    <s> a b c | c d e f | f </s>
    """
    ids = plain_text(text, tokenizer)
    for start in range(0, len(ids) - 1, seq_len - 1):
        piece = ids[start : start + seq_len]
        yield Example(piece, list(piece), number)
