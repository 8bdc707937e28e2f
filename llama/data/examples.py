"""Rows to examples: ids and labels, at most `seq_len` long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from llama.data import findings
from llama.data.findings import Findings
from llama.data.rows import Row
from llama.data.source import Source
from llama.data.types import IGNORE, Example
from llama.errors import UserError
from llama.tokenizer.base import REASONING, Message, Template, Tokenizer, Written
from llama.tokenizer.marks import special_pattern, texts_of
from llama.tokenizer.segments import lost_characters, plain_text

Overlong = Literal["drop", "cut", "split"]
"""What becomes of an example longer than `seq_len`: it is left out; its first `seq_len` tokens are
kept; a plain text is cut into pieces."""

CHARACTERS = 256
"""More than any token stands for, as far as we know: the longest in LLaMA's tokenizers has half as
many."""
REFUSED = 20
"""After more rows than this that the template cannot express, the rest are not looked at: they are
most likely of the same kind, and the user needs no longer list."""


@dataclass(frozen=True)
class Dropped:
    """A row that was left out for its length."""

    number: int
    length: int
    """In tokens; of one so long that its end was not tokenised, those that were."""
    is_text: bool


@dataclass
class ExampleSet:
    """The examples of rows, and what became of the rows on the way."""

    seq_len: int
    overlong: Overlong
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Row number and reason of each row that gave no example."""
    truncated: list[int] = field(default_factory=list)
    """Numbers of the rows cut off at `seq_len`, skipped ones included."""
    dropped: list[Dropped] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Row number and reason of each row that the template cannot express, or that cannot be split;
    after more than `REFUSED` of them the rest were not looked at."""
    answers: int = 0
    """Where rows are cut: stretches of supervised tokens, before anything was cut off."""
    tokens_lost: int = 0
    """Supervised tokens cut off at `seq_len`."""
    cut_unseen: bool = False
    """Whether a row was so long that its end was not even tokenised, and is not in that count."""
    findings: Findings = field(default_factory=Findings)


def build_examples(
    rows: Iterable[Row],
    template: Template,
    tokenizer: Tokenizer,
    seq_len: int,
    overlong: Overlong,
) -> ExampleSet:
    """Tokenise `rows`.

    A conversation is written by `template`; a plain text is BOS, text, EOS with every position
    supervised. What is longer than `seq_len` tokens, at least 2, is treated as `overlong` says;
    what has no label left is skipped. Both are noted, and so is what the template cannot express.
    """
    assert seq_len >= 2, "a position predicts the next one"
    built = ExampleSet(seq_len, overlong)
    for row in rows:
        built.rows += 1
        _note_row(row, tokenizer, built.findings)
        if row.text is not None:
            _add_text(row.text, row.number, tokenizer, built)
            continue
        try:
            written, whole = _written(row, template, tokenizer, seq_len)
            if overlong == "split" and len(written.ids) > seq_len:
                raise UserError(_NOT_SPLIT.format(seq_len))
        except UserError as error:
            built.refused.append((row.number, str(error)))
            if len(built.refused) > REFUSED:
                break
            continue
        _note_written(row, written, built.findings)
        if overlong == "drop" and len(written.ids) > seq_len:
            built.dropped.append(Dropped(row.number, len(written.ids), is_text=False))
            continue
        built.cut_unseen |= not whole
        _add_conversation(row, written, built)
    return built


_NOT_SPLIT = (
    "longer than --seq_len {}, and --overlong split is for plain texts alone: a piece of a "
    "conversation would lack what its answer is to; give --overlong drop or cut"
)


def refusals(source: Source, refused: Iterable[tuple[int, str]]) -> list[str]:
    """One line for each reason, with the rows that have it."""
    reasons: dict[str, list[int]] = {}
    for number, why in refused:
        reasons.setdefault(why, []).append(number)
    return [f"{source.name}: {source.numbers(at)}: {why}" for why, at in reasons.items()]


def _add_text(text: str, number: int, tokenizer: Tokenizer, built: ExampleSet) -> None:
    ids = plain_text(text, tokenizer)
    built.findings.add(findings.LOST, number, lost_characters(text, ids, tokenizer))
    if built.overlong == "drop" and len(ids) > built.seq_len:
        built.dropped.append(Dropped(number, len(ids), is_text=True))
        return
    if built.overlong == "cut":
        _note_cut(ids, number, built)
        ids = ids[: built.seq_len]
    pieces = list(_pieces(ids, number, built.seq_len))
    built.examples += pieces
    if not pieces:
        built.skipped.append((number, "its text has no token"))


def _add_conversation(row: Row, written: Written, built: ExampleSet) -> None:
    ids, labels, seq_len = written.ids, written.labels, built.seq_len
    if built.overlong == "cut":
        _note_cut(labels, row.number, built)
    example = Example(ids[:seq_len], labels[:seq_len], row.number)
    if example.supervised:
        built.examples.append(example)
    elif ids[seq_len:]:
        reason = f"its prompt alone has {seq_len} tokens or more"
        built.skipped.append((row.number, reason))
    else:
        built.skipped.append((row.number, "no answer in it is to be learnt"))


def _note_cut(labels: list[int], row: int, built: ExampleSet) -> None:
    """Count the answers, and what of them the cut takes."""
    seq_len = built.seq_len
    if len(labels) > seq_len:
        built.truncated.append(row)
        built.tokens_lost += sum(label != IGNORE for label in labels[seq_len:])
    for start, end in _answers(labels):
        built.answers += 1
        if start >= seq_len:
            built.findings.add(findings.GONE, row)
        elif end > seq_len:
            built.findings.add(findings.CUT, row)


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
    for new, old in row.own:
        found.add(findings.own(new, old), row.number)
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
    if written.ends is not None:
        found.add(findings.other_end(*written.ends), row.number)
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
