"""What of a text does not reach its ids, and what of it only looks like a token."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from llama.tokenizer.base import Tokenizer


def lost_characters(text: str, tokenizer: Tokenizer) -> int:
    """How many characters of `text` its ids do not give back: those for which a vocabulary without
    bytes has no token, and those that a normalizer writes otherwise or leaves out."""
    given_back = tokenizer.decode(tokenizer.encode(text))
    return 0 if given_back == text else (Counter(text) - Counter(given_back)).total()


def control_texts(text: str, tokenizer: Tokenizer) -> int:
    """How often `text` spells a control token. It stays text: ids of control tokens come from
    templates alone."""
    return len(_spelled(tuple(tokenizer.special_tokens)).findall(text))


@lru_cache(maxsize=8)
def _spelled(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
