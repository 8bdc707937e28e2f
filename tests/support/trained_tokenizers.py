"""Tokenizers trained here on a few lines, in each form that models come in."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.support.tokenizer_files import begin_with

LINES = [
    "The lighthouse stood on a small island, and every evening the keeper lit the lamp.",
    "Name 3 fruits: an apple, a pear and 12 plums. You are a helpful assistant, user and system.",
    "def total(prices):\n    return sum(prices)  # of 2024",
    "Caf\u00e9 au lait, na\u00efve r\u00e9sum\u00e9; \u4e16\u754c \u4f60\u597d.",
    "Below is an instruction. ### Instruction: write the response. ### Response: [INST] [/INST]",
    "<<SYS>> the system <</SYS>> and then what they said",
]
CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>")
CONTROL = (*CONTROL, "<|end_header_id|>", "<|eot_id|>")
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@lru_cache
def sentencepiece_model() -> bytes:
    """A BPE of 600 pieces with byte fallback, and with LLaMA's settings for spaces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(LINES * 4),
        model_writer=model,
        vocab_size=440,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=3,
    )
    return model.getvalue()


def sentencepiece_metadata() -> dict[str, Any]:
    """The same as GGUF metadata."""
    from llama.tokenizer.sentencepiece_file import parse_sentencepiece

    proto = parse_sentencepiece(sentencepiece_model())
    assert proto is not None
    return {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [float(piece.score) for piece in proto.pieces],
        "token_type": [int(piece.type) for piece in proto.pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


@lru_cache
def _trained(digits: bool, add_prefix_space: bool) -> str:
    engine = Engine(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    split = pre_tokenizers.Digits(individual_digits=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, level]) if digits else level
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(LINES * 4, trainer)
    return engine.to_str()


def byte_level(digits: bool = True, prefix_space: bool = False, bos: bool = False) -> Any:
    """tokenizer.json of a byte-level BPE, with digits parted as SmolLM2 has it."""
    description = json.loads(_trained(digits, prefix_space))
    if bos:
        description["post_processor"] = begin_with("<s>", 0)
    return description


def byte_level_metadata(description: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with digits parted, as GGUF metadata."""
    vocabulary = description["model"]["vocab"]
    special = {token["content"]: token["special"] for token in description["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = {None: 1, True: 3, False: 4}
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [kinds[special.get(token)] for token in tokens],
        "merges": [" ".join(merge) for merge in description["model"]["merges"]],
        "bos_token_id": vocabulary["<s>"],
        "eos_token_id": vocabulary["</s>"],
    }


def ranks(count: int = 128_000) -> bytes:
    """A tiktoken file: bytes, some words, and then tokens that no text holds."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in ("th", "the", " t", " th", " the", "er", "in", "12", "123", "\n\n", "  ", " a"):
        tokens.append(word.encode())
    tokens += [b"\xff\xfe" + n.to_bytes(3, "big") for n in range(count - len(tokens))]
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(tokens))


def write_folder(folder: Path, tokenizer: bytes | Mapping[str, Any], **files: Any) -> Path:
    """A Hugging Face folder: a model's file or a tokenizer.json, and JSON files by their stems."""
    folder.mkdir(parents=True)
    if isinstance(tokenizer, bytes):
        (folder / "tokenizer.model").write_bytes(tokenizer)
    else:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for stem, content in {"config": {"model_type": "llama"}, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder
