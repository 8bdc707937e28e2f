"""A tokenizer.json, read as the class that tokenizer_config.json names reads it in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama.files.outside import refused
from llama.notes import note
from llama.tokenizer.bpe import BpeTokenizer
from llama.tokenizer.llama_class import LLAMA, prepend_scheme, with_defaults
from llama.tokenizer.sidecar import Sidecar

AS_IT_STANDS = frozenset({"PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"})
"""Classes of transformers that follow the file alone (`PreTrainedTokenizerFast` without `Fast`)."""


def load_json(path: Path, description: dict[str, Any], beside: Sidecar) -> BpeTokenizer:
    """The tokenizer that `description` holds, read from `path`. Raises UserError."""
    byte_level = '"ByteLevel"' in json.dumps(description)
    if beside.tokenizer_class == LLAMA and not byte_level:
        beside = with_defaults(beside)
        with refused(path, "is not a usable tokenizer; download it again"):
            description = _as_llama_class(description, beside)
    elif beside.tokenizer_class not in (None, LLAMA, *AS_IT_STANDS):
        note(
            f"{beside.source}: the class {beside.tokenizer_class} is not known here: "
            f"{path.name} is followed as it stands"
        )
    made = BpeTokenizer(path, description, beside)
    _note_unheeded(path, made, beside)
    return made


def _as_llama_class(description: dict[str, Any], beside: Sidecar) -> dict[str, Any]:
    """What transformers' LlamaTokenizer makes of the file: vocabulary, merges and post-processor
    are the file's, the treatment of spaces is the class's."""
    scheme = prepend_scheme(beside)
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    model = {
        **description["model"],
        **{"unk_token": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False},
    }
    return {
        **description,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(strip if scheme != "never" else []),
            ],
        },
        "model": model,
    }


def _note_unheeded(path: Path, made: BpeTokenizer, beside: Sidecar) -> None:
    """The switches of tokenizer_config.json that say other than the file, which decides."""
    said = {
        "add_bos_token": (beside.add_bos, made.bos_id in made.text_begins),
        "add_eos_token": (beside.add_eos, made.eos_id in made.text_ends),
    }
    other = [name for name, (asked, done) in said.items() if asked not in (None, done)]
    if other:
        note(
            f"{beside.source}: {', '.join(other)} not used: the post-processor of {path.name} says "
            "what stands around a text, as in transformers"
        )
