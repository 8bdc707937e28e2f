"""Tokenizers that the package `tokenizers` runs: tokenizer.json files and GGUF's byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from llama.errors import UserError
from llama.files.outside import refused
from llama.tokenizer.base import END_OF_ANSWER, Follows
from llama.tokenizer.sentencepiece_file import CONTROL_LIKE


class BpeTokenizer:
    """A tokenizer described as tokenizer.json describes it.

    `description` is that JSON object, in which added tokens written `<|like_this|>` are taken as
    control tokens whatever they are marked as. Raises UserError naming `path`.
    """

    def __init__(
        self,
        path: Path,
        description: dict[str, Any],
        bos: str | None,
        eos: str | None,
        stop_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        with refused(path, "is not a usable tokenizer; download it again"):
            for token in description.get("added_tokens") or []:
                token["special"] = token["special"] or bool(
                    CONTROL_LIKE.fullmatch(token["content"])
                )
            begins, after_special, goes_on = _by_what_they_follow(description)
            self._engines: dict[Follows, Engine] = {
                "nothing": begins,
                "special": after_special,
                "text": goes_on,
            }
            added = begins.get_added_tokens_decoder()
            vocabulary = begins.get_vocab(with_added_tokens=True)
        self.special_tokens = {t.content: id_ for id_, t in added.items() if t.special}
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        self.bos_id = _lookup(path, vocabulary, "BOS", bos)
        eos_id = _lookup(path, vocabulary, "EOS", eos)
        if eos_id is None:
            raise UserError(
                f"{path}: nothing names its end-of-sequence token; put tokenizer_config.json with "
                "`eos_token` beside it"
            )
        self.eos_id = eos_id
        known = [self.special_tokens[t] for t in END_OF_ANSWER if t in self.special_tokens]
        self.stop_ids = frozenset({eos_id, *stop_ids, *known})
        for name, id_ in ((bos, self.bos_id), (eos, eos_id)):
            if name and id_ is not None:
                self.special_tokens[name] = id_
        self._control = frozenset(self.special_tokens.values())
        self.chat_template = chat_template

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        return self._engines[follows].encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        texts = [i for i in ids if i < self.vocab_size and i not in self._control]
        return self._engines["nothing"].decode(texts, skip_special_tokens=True)


def _lookup(path: Path, vocabulary: dict[str, int], kind: str, token: str | None) -> int | None:
    if token is None:
        return None
    if token not in vocabulary:
        raise UserError(f"{path}: its {kind} token {token[:60]!r} is not in the vocabulary")
    return vocabulary[token]


def _by_what_they_follow(description: dict[str, Any]) -> tuple[Engine, Engine, Engine]:
    """Engines for text after nothing, after a control token, and after text.

    Sentencepiece's space before a text shows up in tokenizer.json as a normalizer `Prepend` or a
    pre-tokenizer `Metaspace`, and stands before each text between control tokens, or before the
    first only (`prepend_scheme: first`).
    """
    begins = _engine(description)
    without = _without_prefix(description)
    if without == description:
        return begins, begins, begins
    goes_on = _engine(without)
    first_only = '"prepend_scheme": "first"' in json.dumps(description["pre_tokenizer"])
    return begins, (goes_on if first_only else begins), goes_on


def _engine(description: dict[str, Any]) -> Engine:
    engine = Engine.from_str(json.dumps(description))
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = True  # Text that looks like a control token stays text.
    return engine


def _without_prefix(description: dict[str, Any]) -> dict[str, Any]:
    """The description with no space put before a text. The decoder is left as it is."""
    changed = dict(description)
    for part in ("normalizer", "pre_tokenizer"):
        changed[part] = _strip_prefix(description.get(part))
    return changed


def _strip_prefix(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if step is None or step["type"] == "Prepend":
        return None
    for key in ("normalizers", "pretokenizers"):
        if step["type"] == "Sequence" and key in step:
            steps = [_strip_prefix(inner) for inner in step[key]]
            return {**step, key: [inner for inner in steps if inner is not None]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step
