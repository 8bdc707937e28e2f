"""What lies beside a tokenizer file in a Hugging Face folder: BOS, EOS, stop ids, chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.outside import TOKENIZER_BYTES, read_bytes, refused


@dataclass(frozen=True)
class Sidecar:
    """Settings found beside a tokenizer; `None` or empty where nothing says."""

    bos: str | None
    eos: str | None
    eos_ids: tuple[int, ...]
    """`eos_token_id` of generation_config.json."""
    chat_template: str | None


def read_sidecar(folder: Path) -> Sidecar:
    """Read the JSON files and `chat_template.jinja` of `folder`. Raises UserError if malformed."""
    config = _read_json(folder / "tokenizer_config.json")
    special = _read_json(folder / "special_tokens_map.json")
    generation = _read_json(folder / "generation_config.json")
    eos_ids = generation.get("eos_token_id")
    listed = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    return Sidecar(
        bos=_token(config, "bos_token") or _token(special, "bos_token"),
        eos=_token(config, "eos_token") or _token(special, "eos_token"),
        eos_ids=tuple(id_ for id_ in listed if type(id_) is int and id_ >= 0),
        chat_template=_chat_template(folder, config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_bytes(path, "a JSON file", TOKENIZER_BYTES)
    with refused(path, "is not valid JSON; download it again"):
        value = json.loads(data)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold one JSON object; download it again")
    return value


def _token(config: dict[str, Any], key: str) -> str | None:
    """A token written as text, or as an object with its text under `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in a file of its own, or in tokenizer_config.json: text, or a list of named ones
    of which `default` is taken."""
    path = folder / "chat_template.jinja"
    if path.exists():
        data = read_bytes(path, "a Jinja chat template", TOKENIZER_BYTES)
        with refused(path, "is not UTF-8 text"):
            return data.decode("utf-8-sig")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry for entry in value if isinstance(entry, dict)}
        value = named.get("default", {}).get("template")
    return value if isinstance(value, str) and value else None
