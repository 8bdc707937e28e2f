"""The fields of one record: each is taken by the form that reads it, and the rest are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama.data.records import Problems
from llama.tokenizer.marks import texts_of

DEEPEST = 50
"""Lists and objects in one another; no description of a tool comes near."""


class Fields:
    """The fields of one record. Every one that cannot be used is noted as a problem, and every one
    that nobody asked for is left in `unread`."""

    def __init__(self, record: Mapping[str, Any], place: str, problems: Problems) -> None:
        self._record = record
        self._place = place
        self._problems = problems
        self._unread = {name: None for name, value in record.items() if is_given(value)}
        self.in_turns: dict[str, None] = {}
        """Fields of its turns that are not read."""
        self.sound = True

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of what is in the record and was not asked for."""
        return (*map(str, self._unread), *(f"{name} of a turn" for name in self.in_turns))

    def refuse(self, problem: str) -> None:
        self.sound = False
        self._problems.add(self._place, problem)

    def has(self, name: str) -> bool:
        return is_given(self._record.get(name))

    def look(self, name: str) -> Any:
        """The value of a field, not yet read."""
        return self._record.get(name)

    def take(self, name: str) -> Any:
        """The value of a field, which counts as read."""
        self._unread.pop(name, None)
        return self._record.get(name)

    def text(self, name: str, optional: bool = False) -> str:
        """The text of a field; empty where it cannot be used, or is absent and optional."""
        return self.check(f"field '{name}'", self.take(name), optional)

    def check(self, where: str, value: Any, optional: bool = False) -> str:
        """`value` if it is text that can be encoded."""
        if value is None:
            if not optional:
                self.refuse(f"{where} is missing")
        elif not isinstance(value, str):
            self.refuse(f"{where} is {kind(value)}, not a string")
        elif self.encodable(where, value):
            return value
        return ""

    def encodable(self, where: str, value: Any) -> bool:
        """Whether every text in `value` can be encoded; notes it where not."""
        if (problem := unencodable(value)) is not None:
            self.refuse(f"{where} {problem}")
        return problem is None


def unencodable(value: Any) -> str | None:
    """Why a text in `value`, of whatever depth, can be no token; None where all can."""
    if _is_deep(value):
        return f"is nested deeper than {DEEPEST}"
    for text in texts_of(value):
        if "\0" in text:
            return "holds a NUL character"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "holds half of a surrogate pair, which is no character"
    return None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = [v for v in level if isinstance(v, list | dict)]
        level = [item for v in inner for item in (v.values() if isinstance(v, dict) else v)]
    return bool(level)


def is_given(value: Any) -> bool:
    """Whether a field says anything: null, an empty text, list or object does not."""
    return value is not None and value not in ("", [], {})


def from_json_text(value: Any) -> Any:
    """`value`, or what it holds where it is JSON text: tables of columns keep lists of objects so,
    whose fields differ from row to row."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if value != value:
        return "NaN (a missing value of pandas)"
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
