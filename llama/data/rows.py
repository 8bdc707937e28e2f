"""Rows of training data: each a conversation or a plain text, from any of four formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from llama.data.records import WANTED, Problems, read_records
from llama.errors import UserError
from llama.tokenizer.base import Message

ROLES = ("system", "user", "assistant")
FORMATS = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt/completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Format to its required fields. Any of them marks a row as of that format, the first format going
first: Alpaca as it is published has a `text` field too."""
EXPECTED = (
    "expected `messages`, or `instruction` and `output` (and `input`), or `prompt` and "
    "`completion`, or `text`"
)
BUNDLED = ("instructions_200", "heldout_40")


@dataclass(frozen=True)
class Row:
    """One row: a conversation with at least one answer, or else a plain text."""

    number: int
    """Its row in the file from 1; of a JSONL file, its line."""
    messages: tuple[Message, ...] = ()
    text: str | None = None


def bundled(name: str) -> Path:
    """The file of the bundled data set `name`, one of `BUNDLED`."""
    assert name in BUNDLED
    return Path(str(resources.files("llama.data") / "bundled" / f"{name}.json"))


def read_rows(path: Path) -> list[Row]:
    """All rows of a JSON, JSONL or Parquet file, in order.

    Raises UserError with every problem of the file: one line each, naming row and field, the first
    20 and a count of the rest.
    """
    records, unit = read_records(path)
    if not records:
        raise UserError(f"{path}: holds no rows; give {WANTED}")
    problems = Problems(path)
    rows: list[Row] = []
    first: str | None = None
    mixed = False
    for number, record in records:
        place = f"{unit} {number}"
        if not isinstance(record, dict):
            problems.add(place, f"is {_kind(record)}, not an object; give {WANTED}")
            continue
        form = _format_of(record)
        if form is None:
            problems.add(place, f"has none of the known fields; {EXPECTED}")
            continue
        first = first or form
        if form != first:
            if not mixed:
                problems.add(place, f"is {form}, but the rows before it are {first}; part them")
            mixed = True
            continue
        fields = _Fields(record, place, problems)
        row = READERS[form](fields, number)
        if fields.sound:
            rows.append(row)
    problems.raise_any()
    return rows


class _Fields:
    """The fields of one record; every one that cannot be used is noted."""

    def __init__(self, record: dict[str, Any], place: str, problems: Problems) -> None:
        self._record = record
        self._place = place
        self._problems = problems
        self.sound = True

    def refuse(self, problem: str) -> None:
        self.sound = False
        self._problems.add(self._place, problem)

    def text(self, name: str, optional: bool = False) -> str:
        """The text of a field; empty where it cannot be used, or is absent and optional."""
        return self.check(f"field '{name}'", self._record.get(name), optional)

    def check(self, where: str, value: Any, optional: bool = False) -> str:
        """`value` if it is text that can be encoded."""
        if value is None:
            if not optional:
                self.refuse(f"{where} is missing")
        elif not isinstance(value, str):
            self.refuse(f"{where} is {_kind(value)}, not a string")
        elif "\0" in value:
            self.refuse(f"{where} holds a NUL character")
        elif not _is_encodable(value):
            self.refuse(f"{where} holds half of a surrogate pair, which is no character")
        else:
            return value
        return ""

    def turns(self) -> list[Message]:
        """The turns of `messages`."""
        turns = self._record.get("messages")
        if not isinstance(turns, list):
            self.refuse(f"field 'messages' is {_kind(turns)}, not a list")
            return []
        messages: list[Message] = []
        for i, turn in enumerate(turns, start=1):
            where = f"field 'messages', turn {i}"
            if not isinstance(turn, dict):
                self.refuse(f"{where} is {_kind(turn)}, not an object")
                continue
            role = turn.get("role")
            content = self.check(f"{where}, field 'content'", turn.get("content"))
            if role not in ROLES:
                found = repr(role)[:60]
                self.refuse(f"{where} has the role {found}; known are {', '.join(ROLES)}")
                continue
            messages.append({"role": role, "content": content})
        return messages


def _format_of(record: dict[str, Any]) -> str | None:
    for form, names in FORMATS.items():
        if any(record.get(name) is not None for name in names):
            return form
    return None


def _conversation(fields: _Fields, number: int) -> Row:
    messages = fields.turns()
    if fields.sound and not any(message["role"] == "assistant" for message in messages):
        fields.refuse("field 'messages' has no assistant turn, so nothing to learn")
    return Row(number, tuple(messages))


def _alpaca(fields: _Fields, number: int) -> Row:
    user: Message = {"role": "user", "content": fields.text("instruction")}
    given = fields.text("input", optional=True)
    if given:
        user["input"] = given
    return Row(number, (user, {"role": "assistant", "content": fields.text("output")}))


def _pair(fields: _Fields, number: int) -> Row:
    user: Message = {"role": "user", "content": fields.text("prompt")}
    return Row(number, (user, {"role": "assistant", "content": fields.text("completion")}))


def _text(fields: _Fields, number: int) -> Row:
    text = fields.text("text")
    if fields.sound and not text:
        fields.refuse("field 'text' is empty")
    return Row(number, text=text)


READERS: dict[str, Callable[[_Fields, int], Row]] = {
    "messages": _conversation,
    "alpaca": _alpaca,
    "prompt/completion": _pair,
    "text": _text,
}


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
