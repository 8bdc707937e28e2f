"""One table of weight names: native (which is Meta's own), Hugging Face's and GGUF's."""

from __future__ import annotations

import re

from llama.model.config import HUGGINGFACE_NAMES


def _linear(part: str, name: str) -> str:
    return f"model.layers.{{}}.{part}.{HUGGINGFACE_NAMES[name]}"


_TABLE = (
    # native, Hugging Face, GGUF; `{}` stands for the index of the block
    ("tok_embeddings", "model.embed_tokens", "token_embd"),
    ("layers.{}.attention_norm", "model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("layers.{}.attention.wq", _linear("self_attn", "wq"), "blk.{}.attn_q"),
    ("layers.{}.attention.wk", _linear("self_attn", "wk"), "blk.{}.attn_k"),
    ("layers.{}.attention.wv", _linear("self_attn", "wv"), "blk.{}.attn_v"),
    ("layers.{}.attention.wo", _linear("self_attn", "wo"), "blk.{}.attn_output"),
    ("layers.{}.ffn_norm", "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    ("layers.{}.feed_forward.w1", _linear("mlp", "w1"), "blk.{}.ffn_gate"),
    ("layers.{}.feed_forward.w2", _linear("mlp", "w2"), "blk.{}.ffn_down"),
    ("layers.{}.feed_forward.w3", _linear("mlp", "w3"), "blk.{}.ffn_up"),
    ("norm", "model.norm", "output_norm"),
    ("output", "lm_head", "output"),
)
_INDEX = re.compile(r"\.(0|[1-9][0-9]*)\.")

_TO_HUGGINGFACE = {native: theirs for native, theirs, _ in _TABLE}
_FROM_HUGGINGFACE = {theirs: native for native, theirs, _ in _TABLE}
_TO_GGUF = {native: theirs for native, _, theirs in _TABLE}
_FROM_GGUF = {theirs: native for native, _, theirs in _TABLE}
_NATIVE = {native: native for native, _, _ in _TABLE}


def _translate(name: str, table: dict[str, str]) -> str | None:
    """`name` through `table`; its block index and `.weight` or `.bias` are carried over."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias") or "{" in stem:
        return None
    index = _INDEX.search(stem)
    key = stem if index is None else f"{stem[: index.start()]}.{{}}.{stem[index.end() :]}"
    other = table.get(key)
    if other is None:
        return None
    return f"{other.format(index[1]) if index else other}.{kind}"


def _known(native: str, table: dict[str, str]) -> str:
    other = _translate(native, table)
    if other is None:
        raise KeyError(f"{native} is not the name of a weight of this model")
    return other


def to_huggingface(native: str) -> str:
    """Hugging Face's name of a native weight. KeyError for any other name."""
    return _known(native, _TO_HUGGINGFACE)


def from_huggingface(name: str) -> str | None:
    """The native name of a Hugging Face weight; None for what is not one of this model's."""
    return _translate(name, _FROM_HUGGINGFACE)


def to_gguf(native: str) -> str:
    """GGUF's name of a native weight. KeyError for any other name."""
    return _known(native, _TO_GGUF)


def from_gguf(name: str) -> str | None:
    """The native name of a GGUF weight; None for what is not one of this model's."""
    return _translate(name, _FROM_GGUF)


def from_meta(name: str) -> str | None:
    """`name` itself where it is a weight's; None for what is not one of this model's."""
    return _translate(name, _NATIVE)


def is_rotary_buffer(name: str) -> bool:
    """Whether `name` holds rotary frequencies, which older files carry and the sizes imply."""
    return name.endswith(("rope.freqs", "rotary_emb.inv_freq"))


def layer_index(native: str) -> int | None:
    """The block that a native weight belongs to, if any."""
    index = _INDEX.search(native) if native.startswith("layers.") else None
    return int(index[1]) if index else None
