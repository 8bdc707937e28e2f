"""A tokenizer as other programs read it: the files of a Hugging Face folder, and the fields
`tokenizer.ggml.*` of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.files.json_text import json_text
from llama.tokenizer.base import END_OF_ANSWER, Tokenizer
from llama.tokenizer.bpe import BpeTokenizer
from llama.tokenizer.gguf_vocabulary import (
    ADD,
    BEGIN_WITH_BOS,
    CONTROL,
    ID,
    NAMED,
    NORMAL,
    PRE_TOKENIZERS,
    UNUSED,
    USER_DEFINED,
)
from llama.tokenizer.llama_class import LLAMA
from llama.tokenizer.sentencepiece_file import ModelProto, SentencePieceTokenizer
from llama.tokenizer.sidecar import ATTRIBUTES, CONFIG

JSON_FILE, MODEL_FILE = "tokenizer.json", "tokenizer.model"
_NO_SCORE = -1e6
"""Of a token that nothing is merged into."""
_NAMED = 8
"""Tokens that a message names."""
_BY_TOKEN = {"tokens", "token_type", "scores"}
"""Fields that have an entry for each token."""


def is_written(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer_files` and `gguf_fields` know this kind."""
    return isinstance(tokenizer, BpeTokenizer | SentencePieceTokenizer)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Name to content: `tokenizer.json` or `tokenizer.model`, and the `tokenizer_config.json`
    without which transformers would not know what its tokens are for."""
    if isinstance(tokenizer, BpeTokenizer):
        text = json_text(tokenizer.description(), ensure_ascii=False)
        return {JSON_FILE: text.encode(), CONFIG: _config(tokenizer, "PreTrainedTokenizerFast")}
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return {MODEL_FILE: tokenizer.model, CONFIG: sentencepiece_config(tokenizer)}


def sentencepiece_config(tokenizer: SentencePieceTokenizer) -> bytes:
    """`tokenizer_config.json` beside a `tokenizer.model`, by which transformers gives the ids that
    sentencepiece itself does: with a space before a text that follows a control token."""
    proto = ModelProto.FromString(tokenizer.model)
    more: dict[str, Any] = {
        "unk_token": proto.trainer_spec.unk_piece,
        "legacy": True,
        "add_bos_token": bool(tokenizer.text_begins),
        "add_eos_token": bool(tokenizer.text_ends),
        "add_prefix_space": proto.normalizer_spec.add_dummy_prefix,
    }
    return _config(tokenizer, LLAMA, **more)


def _config(tokenizer: Tokenizer, class_: str, **more: Any) -> bytes:
    named = tokenizer.template_variables
    document = {
        "tokenizer_class": class_,
        **{name: named[name] for name in ATTRIBUTES if name in named},
        **more,
        "clean_up_tokenization_spaces": False,
    }
    return (json_text(document, indent=2, ensure_ascii=False) + "\n").encode()


def gguf_problem(tokenizer: Tokenizer) -> str | None:
    """Why `gguf_fields` cannot say what this tokenizer does, if it cannot."""
    if isinstance(tokenizer, BpeTokenizer) and _pre(tokenizer.description()) is None:
        return (
            "cuts texts up before its merges in a way that GGUF has no name for here; known are "
            + ", ".join(PRE_TOKENIZERS)
        )
    if not is_written(tokenizer):
        return "is a tiktoken file, which GGUF files are not made of here"
    return None


def without_row(tokenizer: Tokenizer, rows: int) -> dict[int, str]:
    """Id to text of the tokens for which an embedding of `rows` rows has none, as where a `[PAD]`
    was added and the model was not resized. `gguf_fields` leaves them out."""
    fields = _vocabulary(tokenizer)
    known = zip(fields["tokens"], fields["token_type"], strict=True)
    return {id_: token for id_, (token, kind) in enumerate(known) if id_ >= rows and kind != UNUSED}


def rows_problem(tokenizer: Tokenizer, rows: int) -> str | None:
    """Why the tokens that have no row cannot be left out, if they cannot. llama.cpp puts ids of its
    own in place of a BOS or EOS that is not named; and texts are made of the vocabulary's own
    tokens, with others where one is not there."""
    left_out = without_row(tokenizer, rows)
    added = {token for token in left_out.values() if token in _added_texts(tokenizer)}
    ends = {tokenizer.bos_id, tokenizer.eos_id}
    needed = {id_: t for id_, t in left_out.items() if id_ in ends or t not in added}
    if not needed:
        return None
    return f"needs {listed(needed)}, and the model's embedding has {rows} rows"


def listed(tokens: Mapping[int, str]) -> str:
    """Tokens by id, for a message: of many the first few and a count."""
    named = [f"{text} ({id_})" for id_, text in tokens.items()]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def gguf_fields(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """`tokenizer.ggml.*` by their full names, for an embedding of `rows` rows: llama.cpp takes the
    number of tokens for that of the rows. Those for which there is no token are filled up, and
    tokens without a row left out."""
    fields = _vocabulary(tokenizer)
    for name in _BY_TOKEN & fields.keys():
        del fields[name][rows:]
    for id_ in range(len(fields["tokens"]), rows):
        fields["tokens"].append(f"[PAD{id_}]")
        fields["token_type"].append(UNUSED)
        fields.get("scores", []).append(_NO_SCORE)
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    stops = [id_ for id_ in _stops(tokenizer) if id_ != tokenizer.eos_id and id_ < rows]
    ids = {
        **{end: getattr(tokenizer, f"{name}_id") for name, end in NAMED.items()},
        **dict(zip(("eot", "eom"), stops, strict=False)),
    }
    fields |= {ID.format(name): id_ for name, id_ in ids.items() if id_ is not None}
    fields[ADD.format("bos")] = bool(tokenizer.text_begins)
    fields[ADD.format("eos")] = bool(tokenizer.text_ends)
    return fields


def _stops(tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer, those first that llama.cpp would not know by their text: it has
    two fields for those besides EOS."""
    known = {tokenizer.special_tokens.get(text) for text in END_OF_ANSWER}
    return sorted(tokenizer.stop_ids, key=lambda id_: (id_ in known, id_))


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, BpeTokenizer):
        return _byte_level(tokenizer)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return _sentencepiece(tokenizer)


def _added_texts(tokenizer: Tokenizer) -> set[str]:
    """The tokens beside the vocabulary's own, which are found in a text whole or not at all."""
    if isinstance(tokenizer, BpeTokenizer):
        return {token["content"] for token in tokenizer.description()["added_tokens"]}
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return {token.content for token in tokenizer.added} | tokenizer.special_tokens.keys()


def _byte_level(tokenizer: BpeTokenizer) -> dict[str, Any]:
    description = tokenizer.description()
    model, added = description["model"], description["added_tokens"]
    vocabulary = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    texts = {id_: text for text, id_ in vocabulary.items()}
    tokens = [texts.get(id_, f"[PAD{id_}]") for id_ in range(tokenizer.vocab_size)]
    types = [NORMAL if id_ in texts else UNUSED for id_ in range(tokenizer.vocab_size)]
    for token in added:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    return {
        "model": "gpt2",
        "pre": _pre(description),
        "tokens": tokens,
        "token_type": types,
        "merges": list(merges),
        "add_space_prefix": False,
    }


def _pre(description: dict[str, Any]) -> str | None:
    """The name by which llama.cpp knows how this tokenizer.json cuts a text up."""
    model, steps = description["model"], description["pre_tokenizer"] or {}
    if description["normalizer"] is not None or model.get("byte_fallback"):
        return None
    found = [_plain(step) for step in steps.get("pretokenizers", [steps])]
    for name, known in PRE_TOKENIZERS.items():
        whole_words = bool(model.get("ignore_merges")) == (name in BEGIN_WITH_BOS)
        if found == [_plain(step) for step in known] and whole_words:
            return name
    return None


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """A step without what changes no id."""
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    proto = ModelProto.FromString(tokenizer.model)
    tokens = [piece.piece for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    scores = [piece.score for piece in proto.pieces]
    missing = tokenizer.vocab_size - len(tokens)
    tokens += [f"[PAD{len(tokens) + index}]" for index in range(missing)]
    types += [UNUSED] * missing
    scores += [_NO_SCORE] * missing
    for token in tokenizer.added:
        assert token.id is not None
        tokens[token.id] = token.content
        types[token.id] = CONTROL if token.special else USER_DEFINED
    normalizer = proto.normalizer_spec
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "unknown_token_id": next((i for i, kind in enumerate(types) if kind == 2), 0),
        "add_space_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
    }
