"""The tokenizer of Llama 3: tiktoken's ranks, one `BASE64 RANK` a line."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tiktoken

from llama.errors import UserError
from llama.files.outside import refused
from llama.tokenizer.base import Follows

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pre-tokenizer: `pat_str` in llama-models `llama3/tokenizer.py`."""
LLAMA3_RANKS = 128_000
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
LONGEST_RUN = 25_000
"""A longer run of spaces, or of anything else, overflows tiktoken's stack (openai/tiktoken#195)."""
RUN = re.compile(rf"\s{{1,{LONGEST_RUN}}}|\S{{1,{LONGEST_RUN}}}")
LONGEST_TEXT = 400_000
"""Characters that Meta's own code hands to tiktoken at once."""


class TiktokenTokenizer:
    """Llama 3's byte-level BPE, with its 256 control tokens."""

    def __init__(self, path: Path, data: bytes) -> None:
        ranks = _parse_ranks(path, data)
        names = _llama3_control_tokens()
        self.special_tokens = {name: len(ranks) + i for i, name in enumerate(names)}
        with refused(path, "is not a usable tiktoken file; download it again"):
            self._encoding = tiktoken.Encoding(
                "llama3",
                pat_str=LLAMA3_SPLIT,
                mergeable_ranks=ranks,
                special_tokens=self.special_tokens,
            )
        self._text_ids = len(ranks)
        self.vocab_size = len(ranks) + len(names)
        self.bos_id: int | None = self.special_tokens["<|begin_of_text|>"]
        self.eos_id = self.special_tokens["<|end_of_text|>"]
        ends = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
        self.stop_ids = frozenset(self.special_tokens[name] for name in ends)
        self.chat_template: str | None = None

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        ids: list[int] = []
        for part in _parts(text):
            ids += self._encoding.encode(part, allowed_special=set(), disallowed_special=())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([i for i in ids if i < self._text_ids], errors="replace")


def is_ranks(data: bytes) -> bool:
    """Whether the first line is one of a ranks file."""
    return RANK_LINE.match(data) is not None


def _parse_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        with refused(path, f"line {number} is not `BASE64 RANK`; download it again"):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    if len(ranks) != LLAMA3_RANKS or set(ranks.values()) != set(range(LLAMA3_RANKS)):
        raise UserError(
            f"{path}: holds {len(ranks):,} tiktoken ranks where Llama 3 has ranks 0 to "
            f"{LLAMA3_RANKS - 1:,}; download it again, or give tokenizer.json for another model"
        )
    return ranks


def _llama3_control_tokens() -> list[str]:
    """Names in the order of their ids (llama-models `llama3/tokenizer.py`)."""
    named = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    ]
    return named + [f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(named))]


def _parts(text: str) -> Iterator[str]:
    """Parts of `text` that tiktoken can take, cut where Meta's tokenizer cuts."""
    if len(text) <= LONGEST_RUN:
        yield text
        return
    for begin in range(0, len(text), LONGEST_TEXT):
        window = text[begin : begin + LONGEST_TEXT]
        start = end = 0
        previous: bool | None = None
        for run in RUN.finditer(window):
            is_space = run[0][0].isspace()
            if is_space == previous:  # The same run goes on past LONGEST_RUN.
                yield window[start:end]
                start = end
            previous, end = is_space, run.end()
        if window[start:]:
            yield window[start:]
