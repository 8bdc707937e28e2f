"""The settings of `export`, and every check of them that needs no model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from llama.files.inputs import file_problem, nearest
from llama.settings.model import AdapterOptions
from llama.settings.validate import at_least, check_model, check_output, check_use

Format = Literal["hf", "meta", "gguf", "peft", "gguf-lora"]
OF_ADAPTER = ("peft", "gguf-lora")
"""Formats of an adapter alone, which is not merged."""
QUANTISED = ("q8_0",)
"""Types of GGUF's that matrices can be stored in."""
_LLAMA_CPP_S = "; leave it out, and have llama.cpp's llama-quantize make that of the model.gguf"
_OF_WRITING = ("format", "output_dir", "dtype", "quantize", "shards", "verify")
"""Settings of what is written."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(AdapterOptions):
    """Settings of `export`."""

    format: Format | None = None
    """What is written; required but with --check_server. hf: Hugging Face's folder, for
    transformers and vLLM; meta: Meta's, for its own code; gguf: one file with its tokenizer, and a
    Modelfile, for llama.cpp and Ollama; in all of them --adapter is merged into the model. peft and
    gguf-lora: the adapter alone, for PEFT and vLLM, and for llama.cpp beside a GGUF file of its
    base."""
    output_dir: Path | None = None
    """Folder to be made, required but with --check_server; one that holds something is refused."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the weights that are written; none means the one in which the model's layers are
    stored, and float16 where they are quantised."""
    quantize: str | None = None
    """With --format gguf, q8_0: store matrices in blocks of 32 numbers of 8 bits with one scale.
    Smaller types, as q4_k_m, llama.cpp's llama-quantize makes of the file."""
    shards: int = 1
    """With --format meta: files that each layer is cut over, one for each GPU of Meta's code."""
    verify: bool = True
    """Whether what was written is read back, and its logits compared with those of the model with
    its adapter beside it, before it gets its name; false saves the time."""
    check_server: str | None = None
    """The address of a server that speaks OpenAI's protocol, as llama.cpp's, vLLM's and Ollama's
    do. Nothing is written: its answers to held-out prompts tell whether --adapter answers there, or
    its base alone. OPENAI_API_KEY of the environment is sent if it is set."""
    server_model: str | None = None
    """With --check_server: the name of what is asked, where the server has several models."""
    prompt_file: Path | None = None
    """With --check_server: prompts to ask, as generate takes them; none means those that the run
    answered before and after its training, else bundled ones."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


def check_export(options: ExportOptions) -> list[str]:
    """Every problem of `export`'s settings."""
    problems = [*check_model(options), *check_use(options)]
    if options.check_server is not None:
        return problems + _check_asking(options, options.check_server)
    problems += [
        f"--{name}: has no effect without --check_server"
        for name in ("server_model", "prompt_file")
        if getattr(options, name) is not None
    ]
    return problems + _check_writing(options)


def _check_asking(options: ExportOptions, url: str) -> list[str]:
    problems = [
        f"--{field.name}: has no effect with --check_server, which writes nothing; leave it out"
        for field in fields(options)
        if field.name in _OF_WRITING and getattr(options, field.name) != field.default
    ]
    if options.adapter is None:
        problems.append("--check_server: tells an adapter from its base; give --adapter")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problems.append(
            f"--check_server: expected an address as http://127.0.0.1:8080, found {url}"
        )
    if options.prompt_file is not None and (problem := file_problem(options.prompt_file)):
        problems.append(f"--prompt_file: {options.prompt_file} {problem}")
    return problems


def _check_writing(options: ExportOptions) -> list[str]:
    problems = at_least(1, shards=options.shards)
    if options.format is None:
        problems.append(f"--format: required, one of {', '.join(get_args(Format))}")
    if options.output_dir is None:
        problems.append("--output_dir: required: a folder to be made")
    else:
        problems += _check_new_folder(options.output_dir)
    if options.format is None:
        return problems
    alone = options.format in OF_ADAPTER
    if alone and options.adapter is None:
        problems.append(f"--format {options.format}: writes an adapter alone; give --adapter")
    only = {
        "shards": ("meta", options.shards != 1),
        "quantize": ("gguf", options.quantize is not None),
    }
    problems += [
        f"--{name}: has no effect with --format {options.format}, only with {format_}"
        for name, (format_, given) in only.items()
        if given and options.format != format_
    ]
    if options.quantize not in (None, *QUANTISED):
        problems.append(
            f"--quantize: expected {' or '.join(QUANTISED)}, found {options.quantize!r}"
            f"{nearest(options.quantize, QUANTISED) or _LLAMA_CPP_S}"
        )
    if options.dtype is not None and (alone or options.quantize is not None):
        what = f"--format {options.format}" if alone else "--quantize"
        problems.append(f"--dtype: has no effect with {what}; leave it out")
    return problems


def _check_new_folder(folder: Path) -> list[str]:
    if problems := check_output(folder, unused=False):
        return problems
    if folder.is_dir() and any(folder.iterdir()):
        return [f"--output_dir: {folder} holds something already; give another folder"]
    return []
