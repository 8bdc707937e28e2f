"""Wherever a file of the user's is opened, one of a known other kind is answered with its kind."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama.adapters import peft_config, peft_format
from llama.checkpoint.manifest import read_saved
from llama.data.rows import read_rows
from llama.errors import UserError, raise_if
from llama.launch.hostfile import read_hostfile
from llama.settings import LoRAOptions, deepspeed_json
from llama.settings.options.read import read_yaml
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.open_model import open_model
from tests.support.model_files import TINY, random_state, write_huggingface, write_meta
from tests.support.tokenizer_files import write_tokenizer_json
from tests.unit.files.test_kinds import POINTER

OTHERS = {
    "Git LFS": POINTER,
    "gzip": gzip.compress(b"{}"),
    "UTF-16": "{}\n\n\n".encode("utf-16"),
    "HTML": b"<!DOCTYPE html><html><title>Sign in</title></html>",
    "Arrow": b"ARROW1\0\0" + bytes(100),
    "zip archive": b"PK\3\4" + bytes(40),
}


def _hf(folder: Path) -> Path:
    write_huggingface(folder, TINY)
    return folder


def _shards(folder: Path) -> Path:
    write_huggingface(folder, TINY, max_shard_size="100KB")
    return folder


def _meta(folder: Path) -> Path:
    write_meta(folder, TINY, random_state(TINY), 2)
    return folder


def _tokenizer(folder: Path) -> Path:
    write_tokenizer_json(folder)
    return folder


def _adapter(folder: Path) -> Path:
    factors = {"a": torch.zeros(2, TINY.dim), "b": torch.zeros(TINY.dim, 2)}
    state = {f"layers.0.attention.wq.lora.{name}": value for name, value in factors.items()}
    config = peft_format.AdapterConfig(LoRAOptions(2, 4.0, 0.0, ("wq",)), "")
    peft_format.save(folder, state, config)
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _model(folder: Path) -> object:
    return open_model(str(folder))


def _template(folder: Path) -> object:
    tokenizer = load_tokenizer(write_tokenizer_json(folder))
    return load_template(str(folder / "template.jinja"), tokenizer)


def _yaml(folder: Path) -> object:
    problems: list[str] = []
    read_yaml(folder / "options.yaml", {}, (), problems)
    raise_if(problems)
    return problems


DOORS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], object]]] = {
    "safetensors": (_hf, "model.safetensors", _model),
    "config.json": (_hf, "config.json", _model),
    "index": (_shards, "model.safetensors.index.json", _model),
    "params.json": (_meta, "params.json", _model),
    "pth": (_meta, "consolidated.01.pth", _model),
    "gguf": (_empty, "model.gguf", _model),
    "tokenizer.json": (_tokenizer, "tokenizer.json", load_tokenizer),
    "tokenizer.model": (_empty, "tokenizer.model", load_tokenizer),
    "tokenizer_config.json": (_tokenizer, "tokenizer_config.json", load_tokenizer),
    "chat_template.jinja": (_tokenizer, "chat_template.jinja", load_tokenizer),
    "template": (_empty, "template.jinja", _template),
    "rows": (_empty, "rows.jsonl", lambda folder: read_rows([folder / "rows.jsonl"])),
    "deepspeed": (_empty, "ds.json", lambda folder: deepspeed_json.load(folder / "ds.json", [])),
    "yaml": (_empty, "options.yaml", _yaml),
    "hostfile": (_empty, "hosts", lambda folder: read_hostfile(folder / "hosts")),
    "adapter": (_adapter, "adapter_model.safetensors", peft_format.load_state),
    "adapter_config": (_adapter, "adapter_config.json", peft_config.load_config),
    "checkpoint": (_empty, "state.json", lambda folder: read_saved(folder / "state.json", 7)),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("door", DOORS)
def test_a_file_of_another_kind_is_named(door: str, kind: str, tmp_path: Path) -> None:
    make, name, read = DOORS[door]
    folder = make(tmp_path / "folder")
    (folder / name).write_bytes(OTHERS[kind])
    with pytest.raises(UserError) as caught:
        read(folder)
    (line,) = caught.value.problems
    assert str(folder / name) in line and kind in line, line
