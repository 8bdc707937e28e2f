"""The tokenizer inside a GGUF file: `tokenizer.ggml.*` of its metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.gguf_header import read_metadata
from llama.files.outside import refused
from llama.notes import note
from llama.tokenizer.added import AddedToken
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.bpe import BpeTokenizer
from llama.tokenizer.named_templates import DEFAULT, templates_of
from llama.tokenizer.sentencepiece_file import ModelProto, SentencePieceTokenizer
from llama.tokenizer.sidecar import Sidecar
from llama.tokenizer.tiktoken_file import LLAMA3_SPLIT

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Token types; GGUF took sentencepiece's numbers."""
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTE_LEVEL],
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
BEGIN_WITH_BOS = ("llama-bpe",)
"""Pre-tokenizers whose texts begin with BOS where nothing says, as in llama.cpp's vocabularies."""
ID, ADD = "tokenizer.ggml.{}_token_id", "tokenizer.ggml.add_{}_token"
NAMED = {"bos": "bos", "eos": "eos"}
TEMPLATE = "tokenizer.chat_template"
READ = frozenset(
    {
        f"tokenizer.ggml.{key}"
        for key in ("model", "pre", "tokens", "token_type", "merges", "scores")
    }
    | {ADD.format(end) for end in NAMED}
    | {ID.format(name) for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
    | {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"}
    | {"tokenizer.ggml.precompiled_charsmap", "tokenizer.chat_templates"}
)
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
        while types and types[-1] == UNUSED:  # a row of the embedding for which there is no token
            tokens.pop()
            types.pop()
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
        "post_processor": _post_processor(metadata, tokens, pre in BEGIN_WITH_BOS),
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
            "ignore_merges": pre == "llama-bpe",
        },
    }
    return BpeTokenizer(path, description, _beside(path, metadata, tokens))


def _sentencepiece(
    path: Path, metadata: dict[str, Any], tokens: list[str], types: list[int]
) -> SentencePieceTokenizer:
    proto = ModelProto()
    scores = metadata["tokenizer.ggml.scores"][: len(tokens)]
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = BYTE in types
    trainer.unk_piece = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    beside = _beside(path, metadata, tokens)
    trainer.bos_piece = beside.named.get("bos_token", "<s>")
    trainer.eos_piece = beside.named.get("eos_token", "</s>")
    trainer.vocab_size = len(tokens)
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizer.remove_extra_whitespaces = metadata.get(
        "tokenizer.ggml.remove_extra_whitespaces", False
    )
    normalizer.precompiled_charsmap = bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", []))
    beside = replace(beside, add_bos=beside.add_bos is not False)
    return SentencePieceTokenizer(path, proto, beside, spaces="each")


def _beside(path: Path, metadata: dict[str, Any], tokens: list[str]) -> Sidecar:
    """What the metadata says besides the vocabulary. What it says and is not read is noted."""
    unread = [
        key
        for key, value in metadata.items()
        if key.startswith("tokenizer.") and not _is_read(key) and value not in (None, False, 0)
    ]
    if unread:
        note(f"{path}: not used here: {', '.join(sorted(unread))[:300]}")
    names = {**NAMED, "unk": "unknown", "pad": "padding"}
    ids = {f"{name}_token": metadata.get(ID.format(key)) for name, key in names.items()}
    stops = [metadata.get(ID.format(end)) for end in ("eot", "eom")]
    named = {name: tokens[id_] for name, id_ in ids.items() if id_ is not None}
    ends = [named[name] for name in ("bos_token", "eos_token") if name in named]
    return Sidecar(
        folder=path,
        named=named,
        added=tuple(AddedToken(text, special=True) for text in ends),
        eos_ids=tuple(id_ for id_ in stops if id_ is not None),
        add_bos=metadata.get(ADD.format("bos")),
        add_eos=metadata.get(ADD.format("eos")),
        chat_templates=_chat_templates(path, metadata),
    )


def _is_read(key: str) -> bool:
    return key in READ or key.startswith(TEMPLATE)


def _post_processor(
    metadata: dict[str, Any], tokens: list[str], begins: bool
) -> dict[str, Any] | None:
    """Puts BOS and EOS around a text as tokenizer.json does; `begins`: BOS where nothing says."""
    added = {"bos": metadata.get(ADD.format("bos"), begins), "eos": metadata.get(ADD.format("eos"))}
    ids = {end: metadata.get(ID.format(end)) for end in NAMED}
    special = {end: tokens[id_] for end, id_ in ids.items() if added[end] and id_ is not None}
    if not special:
        return None
    text = {"Sequence": {"id": "A", "type_id": 0}}
    marks = {end: {"SpecialToken": {"id": t, "type_id": 0}} for end, t in special.items()}
    single = [*([marks["bos"]] if "bos" in marks else []), text]
    single += [marks["eos"]] if "eos" in marks else []
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            t: {"id": t, "ids": [ids[end]], "tokens": [t]} for end, t in special.items()
        },
    }


def _chat_templates(path: Path, metadata: dict[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template` is the default; those named have a key each."""
    named = {
        key.removeprefix(f"{TEMPLATE}."): value
        for key, value in metadata.items()
        if key.startswith(f"{TEMPLATE}.")
    }
    if metadata.get(TEMPLATE):
        named[DEFAULT] = metadata[TEMPLATE]
    return templates_of(named, path) if named else {}
