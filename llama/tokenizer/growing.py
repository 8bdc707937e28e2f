"""The text of tokens that come one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llama.tokenizer.base import Tokenizer

HALF = "\ufffd"
"""What a tokenizer gives for the bytes of a character that is not whole yet."""


class Counted:
    """An iterable that knows how many it gave."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items = items
        self.number = 0

    def __iter__(self) -> Iterator[int]:
        for item in self._items:
            self.number += 1
            yield item


def pieces(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of `tokens` as it grows, a piece for each, which may be empty: half a character
    waits for its other half. Where that never comes it is the last piece, as `HALF`."""
    ids: list[int] = []
    shown = 0
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if text.endswith(HALF):
            yield ""
        else:
            yield text[shown:]
            shown = len(text)
    if rest := tokenizer.decode(ids)[shown:]:
        yield rest


def whole_characters(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The same, but half a character whose other half never comes is left out."""
    for piece in pieces(tokens, tokenizer):
        yield piece.rstrip(HALF)
