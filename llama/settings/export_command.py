"""The settings of `export`, and every check of them that needs no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama.settings.model import AdapterOptions
from llama.settings.validate import at_least, check_model, check_output, check_use

Format = Literal["hf", "meta", "gguf", "peft", "gguf-lora"]
OF_ADAPTER = ("peft", "gguf-lora")
"""Formats of an adapter alone, which is not merged."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(AdapterOptions):
    """Settings of `export`."""

    format: Format
    """What is written. hf: Hugging Face's folder, for transformers and vLLM; meta: Meta's, for its
    own code; gguf: one file with its tokenizer, and a Modelfile, for llama.cpp and Ollama; in all
    of them --adapter is merged into the model. peft and gguf-lora: the adapter alone, for
    PEFT and vLLM, and for llama.cpp beside a GGUF file of its base."""
    output_dir: Path
    """Folder to be made; one that holds something is refused."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the weights that are written; none means the one in which the model is stored, and
    float16 where that is quantised."""
    quantize: Literal["q8_0"] | None = None
    """With --format gguf: store matrices in blocks of 32 numbers of 8 bits with one scale."""
    shards: int = 1
    """With --format meta: files that each layer is cut over, one for each GPU of Meta's code."""
    verify: bool = True
    """Whether what was written is read back, and its logits compared with those of the model with
    its adapter beside it, before it gets its name; false saves the time."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


def check_export(options: ExportOptions) -> list[str]:
    """Every problem of `export`'s settings."""
    problems = [
        *check_model(options),
        *check_use(options),
        *at_least(1, shards=options.shards),
        *_check_new_folder(options.output_dir),
    ]
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
