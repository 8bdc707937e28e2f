"""Tokens added to a vocabulary by the files beside it: their ids, and their places in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from llama.errors import UserError

CONTROL_LIKE = re.compile(r"<\|.*\|>")
"""Tokens that users add for chat formats, often without marking them as control tokens."""
FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """One token as Hugging Face's files describe it. A special one is a control token, which no
    text ever gives; any other is found in texts before they are cut up."""

    content: str
    special: bool
    lstrip: bool = False
    """Whether it takes the white space before it, as `rstrip` that after it."""
    rstrip: bool = False
    normalized: bool = False
    """Whether it is looked for after the others, in what a normalizer made of the text."""
    single_word: bool = False
    """Whether it is one only where no letter or digit touches it."""
    id: int | None = None
    """None where no file says."""


def place(
    wanted: Iterable[AddedToken], vocabulary: Mapping[str, int], size: int, source: str
) -> list[AddedToken]:
    """`wanted` with their ids: the one in `vocabulary`, else the next one free from `size` on. So
    transformers counts, whatever its files say. UserError, naming `source`, where a file
    gives another id: one of the two readings would be wrong."""
    placed: dict[str, AddedToken] = {}
    free = max([size, *(id_ + 1 for id_ in vocabulary.values())])
    for token in wanted:
        if token.content in placed:
            continue
        id_ = vocabulary.get(token.content, free)
        if token.id not in (None, id_):
            raise UserError(
                f"{source}: gives the added token {token.content[:60]!r} the id {token.id}, where "
                f"the vocabulary gives it {id_}; mend that file, or give a tokenizer.json with "
                "--tokenizer"
            )
        free = max(free, id_ + 1)
        special = token.special or CONTROL_LIKE.fullmatch(token.content) is not None
        placed[token.content] = replace(token, id=id_, special=special)
    return list(placed.values())


def trims_of(tokens: Iterable[AddedToken]) -> dict[int, tuple[bool, bool]]:
    """Of the control tokens, those that take the white space beside them: before, after."""
    return {
        token.id: (token.lstrip, token.rstrip)
        for token in tokens
        if token.special and token.id is not None and (token.lstrip or token.rstrip)
    }


def refuse_words(tokens: Iterable[AddedToken], source: str) -> None:
    """UserError for control tokens that are none beside a letter: templates are not read so."""
    words = [token.content for token in tokens if token.special and token.single_word]
    if words:
        raise UserError(
            f"{source}: its control token {words[0][:60]!r} is marked `single_word`, which is not "
            "read here; set it to false if it never stands beside a letter"
        )


class Splitter:
    """Finds the tokens that are not special in texts, as the package `tokenizers` does for the
    tokenizers that it runs: the leftmost, and of those the longest."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens if not token.special}
        raw, normalized = (
            sorted((t.content for t in self._tokens.values() if t.normalized is kind), key=len)
            for kind in (False, True)
        )
        self._passes = [
            re.compile("|".join(map(re.escape, reversed(contents))))
            for contents in (raw, normalized)
            if contents
        ]

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of `text` in order: ids of added tokens, and the text between them."""
        parts: list[str | int] = [text]
        for pattern in self._passes:
            parts = [
                piece
                for part in parts
                for piece in (self._cut(part, pattern) if isinstance(part, str) else [part])
            ]
        return (part for part in parts if part != "")

    def _cut(self, text: str, pattern: re.Pattern[str]) -> Iterator[str | int]:
        at = 0
        for match in pattern.finditer(text):
            token = self._tokens[match[0]]
            start, stop = match.span()
            if token.single_word and _touched(text, start, stop):
                continue
            if token.lstrip:
                start = len(text[:start].rstrip())
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip())
            yield text[at : max(at, start)]
            assert token.id is not None, "placed before it is looked for"
            yield token.id
            at = stop
        yield text[at:]


def _touched(text: str, start: int, stop: int) -> bool:
    beside = text[max(0, start - 1) : start], text[stop : stop + 1]
    return any(re.fullmatch(r"\w", character) for character in beside)
