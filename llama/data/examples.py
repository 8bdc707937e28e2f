"""Rows to examples: ids and labels, at most `seq_len` long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from llama.data import findings
from llama.data.findings import Findings
from llama.data.rows import Row
from llama.data.source import Source
from llama.data.types import IGNORE, Example
from llama.errors import UserError, raise_if
from llama.tokenizer.base import REASONING, Message, Template, Tokenizer, Written
from llama.tokenizer.marks import special_pattern, texts_of
from llama.tokenizer.segments import lost_characters, plain_text

CHARACTERS = 256
"""More than any token stands for, as far as we know: the longest in LLaMA's tokenizers has half as
many."""
REFUSED = 20
"""After more rows than this that the template cannot express, the rest are not looked at: they are
most likely of the same kind, and the user needs no longer list."""


@dataclass
class ExampleSet:
    """The examples of a data set, and what became of its rows on the way."""

    source: Source
    seq_len: int
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Row number and reason of each row that gave no example."""
    truncated: list[int] = field(default_factory=list)
    """Numbers of the rows cut off at `seq_len`, skipped ones included."""
    answers: int = 0
    """Stretches of supervised tokens, before anything was cut off."""
    tokens_lost: int = 0
    """Supervised tokens cut off at `seq_len`."""
    cut_unseen: bool = False
    """Whether a row was so long that its end was not even tokenised, and is not in that count."""
    findings: Findings = field(default_factory=Findings)


def build_examples(
    source: Source, rows: Iterable[Row], template: Template, tokenizer: Tokenizer, seq_len: int
) -> ExampleSet:
    """Tokenise `rows`, read from `source`.

    A conversation is written by `template`; one longer than `seq_len` is cut on the right, and one
    with no label left is skipped: both are noted. A plain text is BOS, text, EOS with every
    position supervised, and gives as many examples as it needs.

    `seq_len` is in tokens, at least 2. Raises UserError with the rows that the template cannot
    express, one line for each reason; after `REFUSED` of them it stops looking.
    """
    assert seq_len >= 2, "a position predicts the next one"
    built = ExampleSet(source, seq_len)
    refused: dict[str, list[int]] = {}
    for row in rows:
        built.rows += 1
        _note_row(row, tokenizer, built.findings)
        if row.text is not None:
            _add_text(row.text, row.number, tokenizer, built)
            continue
        try:
            written, whole = _written(row, template, tokenizer, seq_len)
        except UserError as error:
            refused.setdefault(str(error), []).append(row.number)
            if sum(map(len, refused.values())) > REFUSED:
                break
            continue
        built.cut_unseen |= not whole
        _note_written(row, written, built.findings)
        _add_conversation(row, written, built)
    raise_if([f"{source.name}: {source.numbers(at)}: {why}" for why, at in refused.items()])
    return built


def _add_text(text: str, number: int, tokenizer: Tokenizer, built: ExampleSet) -> None:
    ids = plain_text(text, tokenizer)
    built.findings.add(findings.LOST, number, lost_characters(text, ids, tokenizer))
    pieces = list(_pieces(ids, number, built.seq_len))
    built.examples += pieces
    if not pieces:
        built.skipped.append((number, "its text has no token"))


def _add_conversation(row: Row, written: Written, built: ExampleSet) -> None:
    ids, labels, seq_len = written.ids, written.labels, built.seq_len
    if len(ids) > seq_len:
        built.truncated.append(row.number)
        built.tokens_lost += sum(label != IGNORE for label in labels[seq_len:])
    for start, end in _answers(labels):
        built.answers += 1
        if start >= seq_len:
            built.findings.add(findings.GONE, row.number)
        elif end > seq_len:
            built.findings.add(findings.CUT, row.number)
    example = Example(ids[:seq_len], labels[:seq_len], row.number)
    if example.supervised:
        built.examples.append(example)
    elif ids[seq_len:]:
        reason = f"its prompt alone has {seq_len} tokens or more"
        built.skipped.append((row.number, reason))
    else:
        built.skipped.append((row.number, "no answer in it is to be learnt"))


def _answers(labels: list[int]) -> Iterator[tuple[int, int]]:
    """Where each stretch of supervised tokens begins and ends."""
    at = 0
    for supervised, group in groupby(labels, key=lambda label: label != IGNORE):
        length = len(list(group))
        if supervised:
            yield at, at + length
        at += length


def _note_row(row: Row, tokenizer: Tokenizer, found: Findings) -> None:
    """What can be told of a row before it is tokenised."""
    for name in row.unread:
        found.add(findings.unread(name), row.number)
    special = special_pattern(tuple(tokenizer.special_tokens))
    said = [value for message in row.messages for key, value in message.items() if key != "role"]
    texts = texts_of([row.text, said, row.tools])
    found.add(findings.CONTROL_TEXT, row.number, sum(len(special.findall(t)) for t in texts))
    last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=0)
    for message in row.messages[: last + 1]:
        if _is_empty(message):
            found.add(findings.EMPTY, row.number)
    if row.messages[last + 1 :]:
        found.add(findings.open_end(row.messages[-1]["role"]), row.number)


def _is_empty(message: Message) -> bool:
    """Whether it is an answer to be learnt that says nothing."""
    says = message["content"].strip() or message.keys() & {"tool_calls", *REASONING}
    return message["role"] == "assistant" and not says and message.get("learn") is not False


def _note_written(row: Row, written: Written, found: Findings) -> None:
    """What the template and the tokenizer did not write."""
    for role in written.left_out:
        found.add(findings.left_out(role), row.number)
    for name in written.unwritten:
        found.add(findings.unwritten(name), row.number)
    found.add(findings.LOST, row.number, written.lost)


def _written(
    row: Row, template: Template, tokenizer: Tokenizer, seq_len: int
) -> tuple[Written, bool]:
    """What `template` makes of the conversation, right in the first `seq_len` tokens, and whether
    that is all; there are more than `seq_len` of them if the whole has more.

    To tokenise a content of ten megabytes takes seconds and a gigabyte, to keep its first thousand
    tokens. So each content is first cut to as many characters as `seq_len` of the longest tokens
    have. What that gives is returned if it has more than `seq_len` tokens with one to spare, since
    the cut may have changed the last. Else, as where one token stands for more characters than we
    know of, the whole is tokenised."""
    most = CHARACTERS * seq_len
    if any(len(message["content"]) > most for message in row.messages):
        cut: list[Message] = [{**m, "content": m["content"][:most]} for m in row.messages]
        written = template.write(cut, tokenizer, row.tools)
        if len(written.ids) > seq_len + 1:
            return written, False
    return template.write(row.messages, tokenizer, row.tools), True


def _pieces(ids: list[int], number: int, seq_len: int) -> Iterator[Example]:
    """BOS + text + EOS in pieces of at most `seq_len` tokens. The model predicts every token of a
    piece but its first. So each piece begins with the last token of the one before, and every token
    of the whole but the very first is predicted exactly once.

        seq_len 4    <s> a b c | c d e f | f </s>
    """
    for start in range(0, len(ids) - 1, seq_len - 1):
        piece = ids[start : start + seq_len]
        yield Example(piece, list(piece), number)
