"""Tokenizer folders of every kind that is read, made anew: what the differential test goes through.

Each is a form of tokenizer (sentencepiece, tokenizer.json, tiktoken) with what may lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.trained_tokenizers import (
    CONTROL,
    FLAGS,
    byte_level,
    ranks,
    sentencepiece_model,
    write_folder,
)

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", **NAMES}
AS_IT_STANDS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
CHAT = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def decoder(first: int, **flags: bool) -> dict[str, Any]:
    """`added_tokens_decoder`: chat tokens with `flags` from the id `first` on, and two that are
    found in texts, one of them taking the space beside it."""
    tokens: dict[str, Any] = {
        str(first + i): {"content": text, **FLAGS, **flags, "special": True}
        for i, text in enumerate(CHAT)
    }
    after = first + len(CHAT)
    tokens[str(after)] = {"content": "<tool>", **FLAGS, "normalized": True, "special": False}
    tokens[str(after + 1)] = {"content": "<t>", **FLAGS, "lstrip": True, "special": False}
    return tokens


def _sentencepiece(**config: Any) -> Callable[[Path], Path]:
    files = config.pop("files", {})
    return lambda path: write_folder(
        path, sentencepiece_model(), tokenizer_config={**LLAMA, **config}, **files
    )


def _json(description: Any, **config: Any) -> Callable[[Path], Path]:
    files = config.pop("files", {})
    return lambda path: write_folder(
        path, description, tokenizer_config={**AS_IT_STANDS, **config}, **files
    )


def llama_json() -> dict[str, Any]:
    """The sentencepiece model as a tokenizer.json of the older kind, with its normalizers."""
    from transformers.tokenization_utils_base import generate_merges

    from llama.tokenizer.sentencepiece_file import parse_sentencepiece

    proto = parse_sentencepiece(sentencepiece_model())
    assert proto is not None
    vocabulary = {piece.piece: id_ for id_, piece in enumerate(proto.pieces)}
    space, text = {"String": " "}, {"String": "\u2581"}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id_, "content": content, **FLAGS, "special": True}
            for id_, content in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": space, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": text, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in generate_merges(vocabulary)],
        },
    }


def llama3_config(**more: Any) -> dict[str, Any]:
    names = ["<|begin_of_text|>", "<|end_of_text|>", *CHAT]
    tokens = {128_000 + i: {"content": n, **FLAGS, "special": True} for i, n in enumerate(names)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "added_tokens_decoder": {str(id_): token for id_, token in tokens.items()},
        **more,
    }


def folders() -> dict[str, Callable[[Path], Path]]:
    """By name, what writes each to a path."""
    listed = {text: 440 + i for i, text in enumerate([*CHAT, "<tool>"])}
    extra = {"additional_special_tokens": CHAT}
    by_decoder = {"added_tokens_decoder": decoder(440)}
    trimming = {"added_tokens_decoder": decoder(440, lstrip=True, rstrip=True)}
    byte_extra = {"special_tokens_map": {**NAMES, "additional_special_tokens": ["<extra>"]}}
    rstrip = byte_level()
    rstrip["added_tokens"] = [{**token, "rstrip": True} for token in rstrip["added_tokens"]]
    return {
        "sentencepiece, legacy": _sentencepiece(legacy=True, add_bos_token=True),
        "sentencepiece, not legacy": _sentencepiece(legacy=False, add_bos_token=False),
        "sentencepiece, legacy null": _sentencepiece(legacy=None, add_bos_token=True),
        "sentencepiece, BOS and EOS": _sentencepiece(add_bos_token=True, add_eos_token=True),
        "sentencepiece, no prefix": _sentencepiece(add_prefix_space=False, add_eos_token=True),
        "sentencepiece, added_tokens.json": _sentencepiece(
            legacy=True, **extra, files={"added_tokens": listed}
        ),
        "sentencepiece, added, not legacy": _sentencepiece(
            eos_token="<|im_end|>", files={"added_tokens": listed, "special_tokens_map": extra}
        ),
        "sentencepiece, decoder": _sentencepiece(legacy=True, add_bos_token=True, **by_decoder),
        "sentencepiece, decoder, not legacy": _sentencepiece(legacy=False, **by_decoder),
        "sentencepiece, decoder, trimming": _sentencepiece(legacy=True, **trimming),
        "sentencepiece, trimming, not legacy": _sentencepiece(legacy=False, **trimming),
        "sentencepiece, pad without an id": _sentencepiece(pad_token="[PAD]", legacy=True),
        "llama json, its class": _json(llama_json(), **LLAMA),
        "llama json, its class, legacy": _json(llama_json(), **LLAMA, legacy=True),
        "llama json, its class, decoder": _json(llama_json(), **LLAMA, **by_decoder),
        "llama json, as it stands": _json(llama_json(), unk_token="<unk>"),
        "bytes, digits": _json(byte_level()),
        "bytes, BOS": _json(byte_level(bos=True), add_bos_token=False),
        "bytes, flags alone": _json(byte_level(), add_bos_token=True, add_eos_token=True),
        "bytes, no digits": _json(byte_level(digits=False)),
        "bytes, prefix space": _json(byte_level(digits=False, prefix_space=True)),
        "bytes, digits, prefix space": _json(byte_level(prefix_space=True)),
        "bytes, Llama's class": _json(byte_level(bos=True), tokenizer_class="LlamaTokenizerFast"),
        "bytes, extra": _json(byte_level(), pad_token="[PAD]", files=byte_extra),
        "bytes, decoder": _json(byte_level(), added_tokens_decoder=decoder_of(byte_level())),
        "bytes, rstrip": _json(rstrip),
        "tiktoken": lambda path: write_folder(
            path, ranks(), tokenizer_config=llama3_config(add_bos_token=True)
        ),
    }


def decoder_of(description: Any) -> dict[str, Any]:
    """Its own added tokens, one of them otherwise than there, and two more."""
    tokens = {str(id_): {"content": c, **FLAGS, "special": True} for id_, c in enumerate(CONTROL)}
    tokens[str(CONTROL.index("<|im_end|>"))]["rstrip"] = True
    size = len(description["model"]["vocab"])
    more = decoder(size)
    tail = [json.loads(json.dumps(more[key])) for key in sorted(more, key=int)[-2:]]
    return tokens | {str(size + i): token for i, token in enumerate(tail)}
