"""Marks that stand for what a row says while a template is rendered, and what came of each.

A mark is a text that no template and no row holds. Where it stands in the output is where the
template put what the row says, and there alone can the text of a row be told from the template's
own: so an answer needs no searching for, and text that looks like a control token becomes none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MARK = re.compile("\ue000text:(\\d+)\ue001")
"""Between two private-use characters, which nothing trims, escapes or changes the case of."""
INSPECTED = re.compile("(<think>|</think>)")
"""What templates look for in an answer, to take its reasoning apart."""


@dataclass(frozen=True)
class Placed:
    """Where a mark stands in the marked output, and the text that is there without marks."""

    number: int
    start: int
    end: int
    text: str


class Marks:
    """Gives marks for texts; `special` matches text that looks like a control token."""

    def __init__(self, special: re.Pattern[str]) -> None:
        self._special = special
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """A mark for `text`; a text of nothing but spaces, which templates ask about, stays."""
        if not text.strip():
            return text
        self._texts.append(text)
        return f"\ue000text:{len(self._texts) - 1}\ue001"

    def mark_answer(self, text: str) -> str:
        """The same with what templates look for in an answer left to be found."""
        parts = INSPECTED.split(text)
        return "".join(p if INSPECTED.fullmatch(p) else self.mark(p) for p in parts)

    def guard(self, value: Any) -> Any:
        """A JSON value whose texts are left for the template to read, but for those that it must
        not take for its own."""
        if isinstance(value, str):
            harmless = self._special.search(value) is None and "\ue000" not in value
            return value if harmless else self.mark(value)
        if isinstance(value, Mapping):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guard(item) for item in value]
        return value

    def place(self, marked: str, plain: str) -> list[Placed] | None:
        """Each mark in `marked`, in order, with its text in `plain`: the same output without
        marks. None where `plain` is something else than `marked` with the texts put in, but for
        spaces trimmed at their ends and JSON's escapes."""
        found = list(MARK.finditer(marked))
        if any(int(mark[1]) >= len(self._texts) for mark in found):
            return None
        starts = [mark.start() for mark in found] + [len(marked)]
        if not plain.startswith(marked[: starts[0]]):
            return None
        at = starts[0]
        placed: list[Placed] = []
        for mark, next_start in zip(found, starts[1:], strict=True):
            number, following = int(mark[1]), marked[mark.end() : next_start]
            text = _fitting(self._texts[number], following, plain, at)
            if text is None:
                return None
            placed.append(Placed(number, *mark.span(), text))
            at += len(text) + len(following)
        return placed if at == len(plain) else None


def numbers_in(text: str) -> list[int]:
    """Numbers of the marks in `text`."""
    return [int(mark[1]) for mark in MARK.finditer(text)]


def texts_of(value: Any) -> list[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    if isinstance(value, Sequence):
        return [text for item in value for text in texts_of(item)]
    return []


@lru_cache(maxsize=8)
def special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first, and nothing where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _fitting(text: str, following: str, plain: str, at: int) -> str | None:
    """What of `text` stands at `plain[at:]` with `following` right after it: all of it, or less
    some of the spaces at its ends, or as JSON writes it."""
    core = text.strip()
    lead = text[: len(text) - len(text.lstrip())]
    trail = text[len(lead) + len(core) :]
    spaces = _run(plain, at, len(lead))
    for dropped in range(len(lead) - spaces, len(lead) + 1):
        begin = lead[dropped:] + core
        if not plain.startswith(begin, at):
            continue
        end = at + len(begin)
        for kept in range(_run(plain, end, len(trail)), -1, -1):
            whole = begin + trail[:kept]
            if plain.startswith(whole + following, at):
                return whole
    for variant in (text, core, text.rstrip(), text.lstrip()):
        escaped = json.dumps(variant, ensure_ascii=False)[1:-1]
        if plain.startswith(escaped + following, at):
            return escaped
    return None


def _run(text: str, start: int, most: int) -> int:
    """How many spaces stand at `text[start:]`, at most `most`."""
    end = start
    while end < min(start + most, len(text)) and text[end].isspace():
        end += 1
    return end - start
