"""An adapter that is exported by itself."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llama.adapters import gguf_lora
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
)
from llama.parallel.side_path import LowRank

_LIMIT = LIMITS[torch.float32]


def write_peft(job: Job) -> Proof | None:
    """The adapter's folder as it stands, PEFT's two files and what says what it is."""
    assert job.opened.adapter is not None
    source = job.opened.adapter
    contents = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
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
        sync_folders(file.parent)
        if job.options.verify:
            layers, state = gguf_lora.read(file, config)
            proof = compare(job, job.opened.source.reader, layers, state, _LIMIT)
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise
    return proof


def _low_rank(job: Job, layer: str) -> LowRank:
    options = job.layers[layer]
    shape = job.opened.source.config.linear_shape(layer.rpartition(".")[2])
    with torch.no_grad():
        found = adapter_alone(layer, torch.empty(shape), options, job.state).low_rank()
    if found is None:
        raise UserError(
            f"--format gguf-lora: llama.cpp has no adapters of kind {options.kind}: merge it into "
            "the model, with --format gguf"
        )
    return found
