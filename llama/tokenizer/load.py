"""Loads a tokenizer: which kind is told by what the file holds, never by its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.kinds import GGUF, JSON, TEXT
from llama.files.outside import TOKENIZER_BYTES, read_bytes, refused, require_file
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.gguf_vocabulary import load_gguf
from llama.tokenizer.json_file import load_json
from llama.tokenizer.sentencepiece_file import load_sentencepiece, parse_sentencepiece
from llama.tokenizer.sidecar import read_sidecar
from llama.tokenizer.tiktoken_file import TiktokenTokenizer, is_ranks

WANTED = "a tokenizer: sentencepiece's or Llama 3's tokenizer.model, tokenizer.json, or a GGUF file"
KINDS = (JSON, GGUF, TEXT)
"""Of its files: tiktoken's ranks are plain text; sentencepiece's have no mark of their own."""


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file `path`, or in the folder `path`.

    Beside any but a GGUF file, tokenizer_config.json, special_tokens_map.json, added_tokens.json,
    generation_config.json and the folder's chat templates are read too. Raises UserError for
    whatever cannot be used; a malformed file raises nothing else.
    """
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long.
        path = _in_folder(path)
    require_file(path, WANTED, KINDS)
    if _begins(path, 4) == b"GGUF":
        return load_gguf(path)
    data = read_bytes(path, WANTED, TOKENIZER_BYTES, KINDS)
    if is_ranks(data):
        return TiktokenTokenizer(path, data, read_sidecar(path.parent))
    if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return load_json(path, _described(path, data), read_sidecar(path.parent))
    proto = parse_sentencepiece(data)
    if proto is None:
        raise UserError(f"{path}: is not a tokenizer, or is truncated; give {WANTED}")
    return load_sentencepiece(path, proto, read_sidecar(path.parent))


def _in_folder(folder: Path) -> Path:
    """The tokenizer file of `folder`. tokenizer.json goes before tokenizer.model: where a folder
    has both, only the former knows the tokens that were added for a chat format."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).exists():
            return folder / name
    ggufs = sorted(folder.glob("*.gguf"))
    if not ggufs:
        raise UserError(f"{folder}: holds no tokenizer.json, tokenizer.model or *.gguf; give one")
    if len(ggufs) > 1:
        names = ", ".join(path.name for path in ggufs[:4])
        raise UserError(f"{folder}: holds several GGUF files ({names}); give one of them")
    return ggufs[0]


def _described(path: Path, data: bytes) -> dict[str, Any]:
    with refused(path, "is not valid JSON; download it again"):
        description = json.loads(data.decode("utf-8-sig"))
    if "model" not in description:
        raise UserError(f"{path}: is JSON but no tokenizer (no `model`); give {WANTED}")
    return description


def _begins(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {WANTED}") from None
