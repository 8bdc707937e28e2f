"""What the class `LlamaTokenizer` of transformers settles, whatever file it reads
(`models/llama/tokenization_llama.py`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from llama.tokenizer.added import AddedToken
from llama.tokenizer.sidecar import ATTRIBUTES, Sidecar

LLAMA = "LlamaTokenizer"
DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PrependScheme = Literal["always", "first", "never"]
"""Before which texts a space is put that they do not begin with: each that follows a control or
added token, the one that begins, or none."""


def prepend_scheme(beside: Sidecar) -> PrependScheme:
    if beside.add_prefix_space is False:
        return "never"
    return "always" if beside.legacy else "first"


def with_defaults(beside: Sidecar) -> Sidecar:
    """`beside` with the names that the class gives where no file does."""
    missing = {name: text for name, text in DEFAULTS.items() if name not in beside.unnamed}
    missing = {name: text for name, text in missing.items() if name not in beside.named}
    named = {**beside.named, **missing}
    ordered = {name: named[name] for name in ATTRIBUTES if name in named}
    tokens = tuple(AddedToken(text, special=True) for text in missing.values())
    return replace(
        beside,
        named={**ordered, **named},
        added=(*beside.added, *tokens),
        unlisted=beside.unlisted | set(missing.values()),
    )
