"""A model's name on the Hugging Face hub to a folder on this machine."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from llama.errors import UserError
from llama.weights.fields import read_json_object
from llama.weights.huggingface import INDEX, SINGLE
from llama.weights.huggingface_config import CONFIG

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
_WANTED += ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"]
_WANTED += ["additional_chat_templates/*"]
_TOKENIZER = "tokenizer.*"
_UNWANTED = ["[!a]*/*", "a[!d]*/*"]  # every folder but that one: a pattern cannot name it


def is_hub_name(name: str) -> bool:
    """Whether `name` looks like `organisation/model`."""
    return _NAME.fullmatch(name) is not None


def resolve(name: str) -> Path:
    """The folder of `name` in the local cache, which is filled first if it lacks a file: a download
    that was broken off leaves a folder with some of them. Where the hub cannot be asked, one that
    lacks a tokenizer alone will do.

    UserError if `huggingface_hub` is not installed, or the model cannot be had."""
    try:
        from huggingface_hub import snapshot_download  # no dependency of this project's own
    except ImportError:
        raise UserError(_needs_package(name)) from None
    reason, held = "", None
    # as a cached copy is used without asking the network, every rank sees the same files
    for local in (True, False):
        try:
            folder = Path(
                snapshot_download(
                    name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=local
                )
            )
        except Exception as error:  # its errors come from several libraries
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        held = folder
        if not _missing(folder) and (not local or any(folder.glob(_TOKENIZER))):
            return folder
    if held is None:
        raise UserError(_not_to_be_had(name, reason))
    if missing := _missing(held):
        raise UserError(_in_part(name, held, missing, reason))
    return held


def _missing(folder: Path) -> list[str]:
    """The files of sizes and weights that the folder of a model lacks, by what it holds itself. An
    index that is no such thing is left to the reader of the weights, which says what is wrong."""
    names = {CONFIG}
    if not (folder / SINGLE).exists():
        names.add(INDEX)
        with suppress(UserError, OSError):
            listed = read_json_object(folder / INDEX).get("weight_map")
            names |= {str(name) for name in (listed.values() if isinstance(listed, dict) else ())}
    return sorted(name for name in names if not os.path.exists(folder / name))


def config_file(name: str) -> Path:
    """`config.json` of `name`, from the local cache or else from the hub; no weights are fetched.
    UserError as of `resolve`."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(_needs_package(name)) from None
    reason = ""
    for local in (True, False):
        try:
            return Path(hf_hub_download(name, "config.json", local_files_only=local))
        except Exception as error:  # its errors come from several libraries
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise UserError(_not_to_be_had(name, reason))


def tokenizer_folder(name: str) -> Path | None:
    """The folder of `name` with its tokenizer's files, from the local cache or else from the hub;
    no weights are fetched. None where the model has no tokenizer. UserError as of `resolve`."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(_needs_package(name)) from None
    reason = ""
    for local in (True, False):
        try:
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=[pattern for pattern in _WANTED if "safetensors" not in pattern],
                    ignore_patterns=_UNWANTED,
                    local_files_only=local,
                )
            )
        except Exception as error:  # its errors come from several libraries
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        found = any(folder.glob(_TOKENIZER))
        if found or not local:
            return folder if found else None
    raise UserError(_not_to_be_had(name, reason))


def _needs_package(name: str) -> str:
    return (
        f"--model {name}: no such folder here, and names on the Hugging Face hub need the "
        "package huggingface_hub: pip install huggingface_hub"
    )


def _not_to_be_had(name: str, reason: str) -> str:
    return (
        f"--model {name}: no such folder here, not in the local Hugging Face cache, and not to be "
        f"had from the hub ({reason}): download it where there is a network and give its folder"
    )


def _in_part(name: str, folder: Path, missing: list[str], reason: str) -> str:
    """The hub itself may not have what this reads, such as a model that is pickled there."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    why = f" ({reason})" if reason else ""
    return (
        f"--model {name}: {folder} lacks {missing[0]}{more}, which the hub has not given{why}: "
        "download it where there is a network, or give the folder of a model in safetensors files"
    )


def cached_names() -> list[str]:
    """Names of the models in the local cache; empty without `huggingface_hub`."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return []
    folders = Path(HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
