"""What `export` refuses."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from unittest import mock

import safetensors.torch

from tests.bad_inputs.setting import Case, Setting


def options(**changes: str | None) -> Callable[[Setting], None]:
    """None leaves an option out."""

    def spoil(setting: Setting) -> None:
        setting.options.update({name: text for name, text in changes.items() if text is not None})
        for name, text in changes.items():
            if text is None:
                del setting.options[name]

    return spoil


def asking(**changes: str | None) -> Callable[[Setting], None]:
    """Of a server; nothing is written."""
    return options(format=None, output_dir=None, **changes)


def no_room(setting: Setting) -> None:
    usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1000)
    setting.options.pop("adapter")
    setting.patches.append(mock.patch.object(shutil, "disk_usage", lambda _: usage))


def too_large(setting: Setting) -> None:
    file = setting.path("model/model.safetensors")
    tensors = safetensors.torch.load_file(file)
    tensors["model.norm.weight"][3] = 1e6
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    setting.options.pop("adapter")
    setting.options.update(dtype="float16")


def odd_tokenizer(setting: Setting) -> None:
    setting.edit_json("model/tokenizer.json", pre_tokenizer={"type": "WhitespaceSplit"})
    setting.options.pop("adapter")
    setting.options.update(format="gguf")


Refused = partial(Case, command="export")
CASES = [
    Refused("no format", options(format=None), ("--format: required",)),
    Refused("an unknown format", options(format="ggfu"), ("did you mean gguf?",)),
    Refused("no folder", options(output_dir=None), ("--output_dir: required",)),
    Refused(
        "a folder that holds something", options(output_dir="model"), ("holds something already",)
    ),
    Refused("a folder where a file is", options(output_dir="ds.json"), ("ds.json is a file",)),
    Refused(
        "an adapter's format without one",
        options(adapter=None, format="peft"),
        ("--format peft: writes an adapter alone",),
    ),
    Refused("shards of no Meta folder", options(shards="2"), ("--shards: has no effect",)),
    Refused("no shards", options(shards="0", format="meta"), ("--shards: expected at least 1",)),
    Refused(
        "shards that the heads do not divide into",
        options(shards="8", format="meta", adapter=None),
        ("key/value heads, 4",),
    ),
    Refused(
        "blocks of four bits",
        options(quantize="q4_k_m", format="gguf"),
        ("expected q8_0, found 'q4_k_m'; leave it out, and have llama.cpp's llama-quantize",),
    ),
    Refused("blocks of no GGUF", options(quantize="q8_0"), ("--quantize: has no effect",)),
    Refused(
        "two types",
        options(quantize="q8_0", format="gguf", dtype="float16"),
        ("--dtype: has no effect with --quantize",),
    ),
    Refused(
        "a type for an adapter",
        options(format="gguf-lora", dtype="float16"),
        ("--dtype: has no effect with --format gguf-lora",),
    ),
    Refused(
        "several at once",
        options(shards="2", quantize="q8_0", output_dir="model"),
        ("holds something", "--shards", "--quantize"),
    ),
    Refused("a disk that is full", no_room, ("has room for 1,000 bytes",)),
    Refused("a tokenizer that GGUF has no words for", odd_tokenizer, ("has no name for here",)),
    Refused(
        "a server's model with no server",
        options(server_model="mine", prompt_file="rows.json"),
        ("--server_model: has no effect", "--prompt_file: has no effect"),
    ),
    Refused(
        "a server asked and something written",
        options(check_server="http://127.0.0.1:9"),
        ("--format: has no effect", "--output_dir: has no effect"),
    ),
    Refused(
        "a server asked with no adapter",
        asking(check_server="http://127.0.0.1:9", adapter=None),
        ("give --adapter",),
    ),
    Refused(
        "a server with no address",
        asking(check_server="127.0.0.1:9"),
        ("expected an address as http",),
    ),
    Refused(
        "prompts for a server that are not there",
        asking(check_server="http://127.0.0.1:9", prompt_file="none.txt"),
        ("--prompt_file: none.txt does not exist",),
    ),
    Refused(
        "no server at the address",
        asking(check_server="http://127.0.0.1:9"),
        ("no server answers",),
    ),
    Refused(
        "a weight too large for its type",
        too_large,
        ("is too large for torch.float16",),
        loads=True,
    ),
]
