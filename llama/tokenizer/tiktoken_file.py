"""The tokenizer of Llama 3: tiktoken's ranks, one `BASE64 RANK` a line."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import tiktoken

from llama.errors import UserError
from llama.files.outside import refused
from llama.notes import note
from llama.tokenizer.added import AddedToken, refuse_words, trims_of
from llama.tokenizer.base import END_OF_ANSWER, Follows
from llama.tokenizer.sidecar import Sidecar

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
    """Llama 3's byte-level BPE, with its 256 control tokens.

    With a tokenizer_config.json beside it, the names and control tokens are those that it gives,
    and BOS stands before a text only where it says so, as in transformers; else all is Meta's.
    """

    def __init__(self, path: Path, data: bytes, beside: Sidecar) -> None:
        ranks = _parse_ranks(path, data)
        self._text_ids = len(ranks)
        tokens = _control_tokens(path, self._text_ids, beside)
        self.special_tokens = {token.content: id_ for id_, token in tokens.items()}
        with refused(path, "is not a usable tiktoken file; download it again"):
            self._encoding = tiktoken.Encoding(
                "llama3",
                pat_str=LLAMA3_SPLIT,
                mergeable_ranks=ranks,
                special_tokens=self.special_tokens,
            )
        self.vocab_size = 1 + max(tokens)
        bos, eos = (_named(path, beside, end, self.special_tokens) for end in ("bos", "eos"))
        if eos is None:
            raise UserError(f"{beside.source}: its `eos_token` is empty; name the end token")
        self.bos_id, self.eos_id = bos, eos
        known = [self.special_tokens[t] for t in END_OF_ANSWER if t in self.special_tokens]
        self.stop_ids = frozenset({eos, *beside.eos_ids, *known})
        if beside.configured and beside.add_bos is None:
            note(f"{beside.source}: says nothing of `add_bos_token`: plain texts get no BOS")
        begins = not beside.configured if beside.add_bos is None else beside.add_bos
        self.text_begins = (bos,) if begins and bos is not None else ()
        self.text_ends = (eos,) if beside.add_eos else ()
        self.trims = trims_of(tokens.values())
        names = {id_: text for text, id_ in self.special_tokens.items()}
        own = {"bos_token": bos, "eos_token": eos}
        self.template_variables = {
            name: names[id_] for name, id_ in own.items() if id_ is not None
        } | beside.named
        self.chat_templates = beside.chat_templates

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


def _control_tokens(path: Path, first: int, beside: Sidecar) -> dict[int, AddedToken]:
    """By id, from `first` on: those that the files beside give, else Meta's."""
    for token in beside.added:
        if token.id is not None and token.id < first:
            raise UserError(
                f"{beside.source}: gives {token.content[:60]!r} the id {token.id}, which is "
                f"a text's in {path.name}; the two belong to different models"
            )
    given = {token.id: token for token in beside.added if token.id is not None}
    if given:  # Ids between them have names that nothing writes, as transformers gives them.
        names = [f"<|reserved_token_{id_}|>" for id_ in range(first, max(given) + 1)]
    else:
        names = _llama3_control_tokens()
    tokens = {id_: AddedToken(name, True, id=id_) for id_, name in enumerate(names, first)}
    tokens |= {id_: replace(token, special=True) for id_, token in given.items()}
    refuse_words(tokens.values(), beside.source)
    contents = {token.content for token in tokens.values()}
    missing = [token.content for token in beside.added if token.content not in contents]
    if missing or len(contents) < len(tokens):
        what = missing[0] if missing else "one of its tokens"
        raise UserError(
            f"{beside.source}: {what[:60]} has no id, or one that is another's; give each control "
            "token its id under `added_tokens_decoder`"
        )
    return tokens


def _named(path: Path, beside: Sidecar, end: str, special: dict[str, int]) -> int | None:
    """The id of BOS or EOS: the one that is named, else Meta's, unless it is said that none is."""
    own = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}[end]
    name = f"{end}_token"
    if name in beside.unnamed:
        return None
    text = beside.named.get(name, own)
    if text not in special:
        raise UserError(f"{beside.source}: its {name} {text[:60]!r} is not in {path.name}")
    return special[text]


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
