"""A model's name on the Hugging Face hub to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from llama.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
_WANTED += ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"]
_WANTED += ["additional_chat_templates/*"]
_UNWANTED = ["[!a]*/*", "a[!d]*/*"]  # every folder but that one: a pattern cannot name it


def is_hub_name(name: str) -> bool:
    """Whether `name` looks like `organisation/model`."""
    return _NAME.fullmatch(name) is not None


def resolve(name: str) -> Path:
    """The folder of `name` in the local cache, which is filled first if it lacks the weights.

    UserError if `huggingface_hub` is not installed, or the model cannot be had."""
    try:
        from huggingface_hub import snapshot_download  # no dependency of this project's own
    except ImportError:
        raise UserError(_needs_package(name)) from None
    reason = ""
    # as a cached copy is used without asking the network, every rank sees the same files
    for local in (True, False):
        try:
            folder = snapshot_download(
                name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=local
            )
        except Exception as error:  # its errors come from several libraries
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        if not local or any(Path(folder).glob("*.safetensors")):
            return Path(folder)
    raise UserError(_not_to_be_had(name, reason))


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
        found = any(folder.glob("tokenizer.*"))
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


def cached_names() -> list[str]:
    """Names of the models in the local cache; empty without `huggingface_hub`."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return []
    folders = Path(HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
