"""The tokenizer inside a GGUF file: `tokenizer.ggml.*` of its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.gguf_header import read_metadata
from llama.files.outside import refused
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.bpe import BpeTokenizer
from llama.tokenizer.sentencepiece_file import ModelProto, SentencePieceTokenizer
from llama.tokenizer.tiktoken_file import LLAMA3_SPLIT

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Token types; GGUF took sentencepiece's numbers."""
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    # Hugging Face's own import of this GGUF forgets to part the digits.
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "llama-bpe": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3_SPLIT},
            "behavior": "Isolated",
            "invert": False,
        },
        {**BYTE_LEVEL, "use_regex": False},
    ],
}
INSTEAD = "give the model's own tokenizer.json or tokenizer.model with --tokenizer"


def load_gguf(path: Path) -> Tokenizer:
    """The tokenizer of `path`. Raises UserError where it holds none that is known here."""
    with refused(path, "is not a complete GGUF file; download it again"):
        metadata = read_metadata(path)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{path}: holds a tokenizer of kind {kind!r}, not known here; {INSTEAD}")
    with refused(path, f"holds a damaged tokenizer; {INSTEAD}"):
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        if not tokens or len(tokens) != len(types):
            raise UserError(f"{path}: {len(tokens)} tokens have {len(types)} types; {INSTEAD}")
        if kind == "gpt2":
            return _byte_level(path, metadata, tokens, types)
        return _sentencepiece(path, metadata, tokens, types)


def _byte_level(
    path: Path, metadata: dict[str, Any], tokens: list[str], types: list[int]
) -> BpeTokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{path}: its pre-tokenizer is {pre!r}, known are {known}; {INSTEAD}")
    added = [
        {
            "id": id_,
            "content": tokens[id_],
            "special": kind == CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for id_, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{path}: the same token stands twice in its vocabulary; {INSTEAD}")
    description = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
            "ignore_merges": pre == "llama-bpe",
        },
    }
    ends = [metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eot", "eom")]
    return BpeTokenizer(
        path,
        description,
        bos=_named(metadata, tokens, "bos"),
        eos=_named(metadata, tokens, "eos"),
        stop_ids=[id_ for id_ in ends if id_ is not None],
        chat_template=_chat_template(path, metadata),
    )


def _sentencepiece(
    path: Path, metadata: dict[str, Any], tokens: list[str], types: list[int]
) -> SentencePieceTokenizer:
    proto = ModelProto()
    for token, score, kind in zip(tokens, metadata["tokenizer.ggml.scores"], types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = BYTE in types
    trainer.unk_piece = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    trainer.bos_piece = _named(metadata, tokens, "bos") or "<s>"
    trainer.eos_piece = _named(metadata, tokens, "eos") or "</s>"
    trainer.vocab_size = len(tokens)
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    return SentencePieceTokenizer(path, proto, chat_template=_chat_template(path, metadata))


def _chat_template(path: Path, metadata: dict[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{path}: its chat template is no text; {INSTEAD}")
    return template


def _named(metadata: dict[str, Any], tokens: list[str], end: str) -> str | None:
    id_ = metadata.get(f"tokenizer.ggml.{end}_token_id")
    return None if id_ is None else tokens[id_]
