"""Tokenizers that the package `tokenizers` runs: tokenizer.json files and GGUF's byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from llama.errors import UserError
from llama.files.outside import refused
from llama.tokenizer.added import FLAGS, AddedToken, place, refuse_words, trims_of
from llama.tokenizer.base import END_OF_ANSWER, Follows
from llama.tokenizer.sidecar import Sidecar, settle_unplaced


class BpeTokenizer:
    """A tokenizer described as tokenizer.json describes it.

    `description` is that JSON object. To its added tokens come those of `beside`, and those
    written `<|like_this|>` are taken as control tokens whatever they are marked as. Its
    post-processor says what stands around a text. Raises UserError naming `path`.
    """

    def __init__(self, path: Path, description: dict[str, Any], beside: Sidecar) -> None:
        with refused(path, "is not a usable tokenizer; download it again"):
            added = _with_added(path, description, beside)
            begins, after_special, goes_on = _by_what_they_follow(description)
            self._engines: dict[Follows, Engine] = {
                "nothing": begins,
                "special": after_special,
                "text": goes_on,
            }
            self._each_word = _prefixes_each_word(description)
            vocabulary = begins.get_vocab(with_added_tokens=True)
            self.text_begins, self.text_ends = _around(begins)
        moved = [token for token in added if vocabulary[token.content] != token.id]
        if moved:
            raise UserError(
                f"{path}: gives the added token {moved[0].content[:60]!r} the id {moved[0].id}, "
                f"and its place in the file gives it {vocabulary[moved[0].content]}; mend the file"
            )
        self.special_tokens = {
            token.content: vocabulary[token.content] for token in added if token.special
        }
        self.trims = trims_of(added)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        bos, eos = beside.named.get("bos_token"), beside.named.get("eos_token")
        self.bos_id = None if bos is None else vocabulary[bos]
        self.eos_id = _eos(path, vocabulary, eos, beside)
        known = [self.special_tokens[t] for t in END_OF_ANSWER if t in self.special_tokens]
        self.stop_ids = frozenset({self.eos_id, *beside.eos_ids, *known})
        self._control = frozenset(self.special_tokens.values())
        self.chat_templates = beside.chat_templates
        self.template_variables = beside.named

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of what was set on an engine, pickling keeps all but this."""
        self.__dict__.update(state)
        for engine in self._engines.values():
            engine.encode_special_tokens = True

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        if follows == "text" and self._each_word:
            return self._words_after_text(text)
        return self._engines[follows].encode(text, add_special_tokens=False).ids

    def description(self) -> dict[str, Any]:
        """What it does, as tokenizer.json has it: all of it, also where it was read from a GGUF
        file or follows a class of transformers."""
        return json.loads(self._engines["nothing"].to_str())

    def _words_after_text(self, text: str) -> list[int]:
        """Where each word is given a space, going on takes it from the first one alone."""
        made = self._engines["nothing"].encode(text, add_special_tokens=False)
        first = [i for i, word in enumerate(made.word_ids) if word == 0]
        if not first:
            return made.ids
        end = made.offsets[first[-1]][1]
        word = self._engines["text"].encode(text[:end], add_special_tokens=False)
        return word.ids + made.ids[first[-1] + 1 :]

    def decode(self, ids: Sequence[int]) -> str:
        texts = [i for i in ids if i < self.vocab_size and i not in self._control]
        return self._engines["nothing"].decode(texts, skip_special_tokens=True)


def _eos(path: Path, vocabulary: dict[str, int], eos: str | None, beside: Sidecar) -> int:
    if eos is not None:
        return vocabulary[eos]
    if beside.eos_ids and beside.eos_ids[0] in vocabulary.values():
        return beside.eos_ids[0]
    raise UserError(
        f"{path}: nothing names its end-of-sequence token; put tokenizer_config.json with "
        "`eos_token` beside it"
    )


def _with_added(path: Path, description: dict[str, Any], beside: Sidecar) -> list[AddedToken]:
    """All added tokens, which `description` holds afterwards. Where `beside` describes one that it
    has, the flags are those of `beside`, as in transformers."""
    if "vocab" not in description["model"]:
        Engine.from_str(json.dumps(description))  # Raises what says best what is wrong.
    model = description["model"].get("vocab", {})
    pieces = model if isinstance(model, dict) else {piece: i for i, (piece, _) in enumerate(model)}
    own = description.get("added_tokens") or []
    vocabulary = {**pieces, **{token["content"]: token["id"] for token in own}}
    told = {t.content: t for t in beside.added if t.id is not None and beside.redescribes}
    control = {token.content for token in beside.added if token.special}
    eos = beside.eos_ids[0] if beside.eos_ids and "eos_token" not in beside.named else None
    wanted = [
        told.get(token["content"])
        or AddedToken(
            token["content"],
            **{name: token[name] for name in FLAGS if name != "special"},
            special=token["special"] or token["content"] in control or token["id"] == eos,
        )
        for token in own
    ]
    placed = place([*wanted, *beside.added], vocabulary, len(pieces), beside.source)
    refuse_words(placed, str(path))
    settle_unplaced(path, placed, vocabulary, beside)
    description["added_tokens"] = [
        {"id": t.id, "content": t.content, **{name: getattr(t, name) for name in FLAGS}}
        for t in sorted(placed, key=lambda token: token.id or 0)
    ]
    return placed


def _around(engine: Engine) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text."""
    made = engine.encode("a", add_special_tokens=True)
    text = [i for i, added in enumerate(made.special_tokens_mask) if not added]
    if not text:  # A vocabulary without an `a`: whatever is added then stands before.
        return tuple(made.ids), ()
    return tuple(made.ids[: text[0]]), tuple(made.ids[text[-1] + 1 :])


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


def _prefixes_each_word(description: dict[str, Any]) -> bool:
    """Whether the space is put where other steps have cut the text up already."""
    steps = (description["pre_tokenizer"] or {}).get("pretokenizers", [])
    return any(step.get("add_prefix_space") for step in steps[1:])


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
