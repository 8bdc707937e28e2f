"""An adapter that is exported by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from llama.adapters import gguf_lora, peft_format
from llama.adapters.merged import adapter_alone
from llama.assembly.model import read_adapter
from llama.commands.export.job import Job
from llama.commands.export.proof import LIMITS, Proof, compare
from llama.errors import UserError
from llama.files.atomic import (
    abandon_folder,
    begin_folder,
    finish_folder,
    sync_folders,
    write_folder,
    write_in,
)
from llama.files.json_text import json_text
from llama.methods.about import TEMPLATE
from llama.parallel.side_path import LowRank
from llama.tokenizer.sidecar import CONFIG
from llama.tokenizer.writing import JSON_FILE, MODEL_FILE, is_written, tokenizer_files
from llama.weights.tokenizer_beside import GENERATION, files_beside

_LIMIT = LIMITS[torch.float32]


def write_peft(job: Job) -> Proof | None:
    """The adapter's folder as it stands, PEFT's two files and what says what it is; the template
    that was asked for, if one was; and its tokenizer, unless it is there already, so that other
    programs need to ask no base for it."""
    assert job.opened.adapter is not None
    source = job.opened.adapter
    contents = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    contents[peft_format.CONFIG] = peft_format.with_published_base(contents[peft_format.CONFIG])
    contents = {**_tokenizer(job, contents), **contents, **_template(job)}
    proofs: list[Proof] = []

    def verify(partial: Path) -> None:
        if job.options.verify:
            config = job.opened.source.config
            layers, state = read_adapter(partial, config)
            proofs.append(compare(job, job.opened.source.reader, layers, state, _LIMIT))

    write_folder(job.folder, contents, verify)
    return proofs[0] if proofs else None


def write_gguf_lora(job: Job) -> Proof | None:
    """Its factors, for llama.cpp. Raises UserError for an adapter that is no plain product of
    two."""
    folder, config = job.folder, job.opened.source.config
    factors = {layer: _low_rank(job, layer) for layer in job.layers}
    proof = None
    try:
        file = begin_folder(folder) / gguf_lora.FILE
        gguf_lora.write(file, factors, config)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        for name, content in _template(job).items():
            write_in(file.parent, name, content)
        sync_folders(file.parent)
        if job.options.verify:
            layers, state = gguf_lora.read(file, config)
            proof = compare(job, job.opened.source.reader, layers, state, _LIMIT)
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise
    return proof


def product_of(job: Job, layer: str) -> LowRank | None:
    """The factors of a layer's adapter; None where it is no plain product of two."""
    shape = job.opened.source.config.linear_shape(layer.rpartition(".")[2])
    with torch.no_grad():
        alone = adapter_alone(layer, torch.empty(shape), job.layers[layer], job.state)
        return alone.low_rank()


def _low_rank(job: Job, layer: str) -> LowRank:
    found = product_of(job, layer)
    if found is None:
        raise UserError(
            f"--format gguf-lora: llama.cpp has no adapters of kind {job.layers[layer].kind}: "
            "merge it into the model, with --format gguf"
        )
    return found


def _tokenizer(job: Job, beside: Mapping[str, bytes]) -> dict[str, bytes]:
    """What makes `AutoTokenizer.from_pretrained` of the folder the adapter's tokenizer. There is no
    config.json to say its class, so a tokenizer_config.json must."""
    tokenizer = job.opened.tokenizer
    if not beside.keys().isdisjoint((JSON_FILE, MODEL_FILE)) or not is_written(tokenizer):
        return {}
    found, _ = files_beside(job.opened.tokenizer_path, job.template, for_transformers=True)
    found.pop(GENERATION, None)
    own, ours = (json.loads(of.get(CONFIG, b"{}")) for of in (found, tokenizer_files(tokenizer)))
    if "tokenizer_class" not in own:
        found[CONFIG] = (json_text(ours | own, indent=2, ensure_ascii=False) + "\n").encode()
    return found


def _template(job: Job) -> dict[str, bytes]:
    """The chat template that the adapter is to be used with, for servers that know its base's."""
    return {} if job.template is None else {TEMPLATE: job.template.encode()}
