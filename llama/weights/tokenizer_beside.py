"""The files of a tokenizer that go with a model's weights."""

from __future__ import annotations

import json
from pathlib import Path

from llama.files.json_text import json_text
from llama.files.kinds import GGUF, HEAD, JSON, TEXT, kind_of
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.named_templates import DEFAULT, FOLDER
from llama.tokenizer.sentencepiece_file import SentencePieceTokenizer
from llama.tokenizer.sidecar import CONFIG
from llama.tokenizer.writing import (
    JSON_FILE,
    MODEL_FILE,
    sentencepiece_config,
    tokenizer_files,
)

GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
_BESIDE = (
    *(CONFIG, "special_tokens_map.json", "added_tokens.json", GENERATION),
    *(TEMPLATE, "chat_template.json"),
)
"""What a tokenizer's folder may hold beside it; and a folder of more templates."""


def files_beside(
    path: Path | None, template: str | None, for_transformers: bool
) -> tuple[dict[str, bytes], list[str]]:
    """Name to content of the files that make up the tokenizer `path` (a file or a folder) in a
    model's folder, and what a user has to know of them. Files are taken as they are; of a GGUF file
    they are made. `template` goes in place of the chat templates. `for_transformers`, a lone
    sentencepiece model gets a tokenizer_config.json; Meta's own code wants none."""
    if path is None:
        return {}, ["holds no tokenizer: the model has none"]
    folder = path if path.is_dir() else path.parent
    files = [folder / JSON_FILE, folder / MODEL_FILE] if path.is_dir() else [path]
    kinds = {file: _kind(file) for file in files if file.exists()}
    hints: list[str] = []
    if not kinds or GGUF in kinds.values():
        found = _made(load_tokenizer(path))
    else:
        found = {
            JSON_FILE if kind == JSON else MODEL_FILE: file.read_bytes()
            for file, kind in kinds.items()
        }
        more = [folder / name for name in _BESIDE] + sorted((folder / FOLDER).glob("*.jinja"))
        found |= {str(f.relative_to(folder)): f.read_bytes() for f in more if f.is_file()}
        if JSON_FILE not in found and for_transformers:
            hints = _complete(found, path, TEXT in kinds.values())
    if template is not None:
        found = _with_template(found, template)
    return found, hints


def _complete(found: dict[str, bytes], path: Path, ranks: bool) -> list[str]:
    """Add to a lone sentencepiece model what transformers needs beside it."""
    if ranks:
        return ["holds tokenizer.model as it was, and no tokenizer.json of it"]
    if CONFIG not in found:
        tokenizer = load_tokenizer(path)
        assert isinstance(tokenizer, SentencePieceTokenizer)
        found[CONFIG] = sentencepiece_config(tokenizer)
    return []


def _made(tokenizer: Tokenizer) -> dict[str, bytes]:
    templates = {
        TEMPLATE if name == DEFAULT else f"{FOLDER}/{name}.jinja": source.encode()
        for name, source in tokenizer.chat_templates.items()
    }
    return tokenizer_files(tokenizer) | templates


def _with_template(found: dict[str, bytes], template: str) -> dict[str, bytes]:
    """Programs look in either of two places: both say the same."""
    kept = {
        name: content
        for name, content in found.items()
        if not name.startswith(f"{FOLDER}/") and name != "chat_template.json"
    }
    kept[TEMPLATE] = template.encode()
    if CONFIG in kept:
        settings = json.loads(kept[CONFIG].decode("utf-8-sig")) | {"chat_template": template}
        text = json_text(settings, indent=2, ensure_ascii=False) + "\n"
        kept[CONFIG] = text.encode()
    return kept


def _kind(file: Path) -> str | None:
    with file.open("rb") as content:
        return kind_of(content.read(HEAD))
