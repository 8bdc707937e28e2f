"""`launcher/export.py`: a model with its adapter merged, or an adapter, as other programs read
it."""

from __future__ import annotations

import shutil
import time
from math import prod
from pathlib import Path
from typing import Any

import torch

from llama.adapters.merged import Merged
from llama.assembly.adapter import open_for_use
from llama.commands.export.alone import write_gguf_lora, write_peft
from llama.commands.export.job import Job
from llama.commands.export.proof import Proof, prove
from llama.commands.export.rounding import narrowed, written_type
from llama.commands.export.served import check_server
from llama.commands.export.words import closing
from llama.errors import TrainingError, UserError, raise_if
from llama.files.json_text import json_text
from llama.launch.processes import keep_freed_memory
from llama.model.config import ModelConfig
from llama.notes import note
from llama.settings import ExportOptions, check_export
from llama.settings.export_command import OF_ADAPTER
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.writing import gguf_problem, rows_problem
from llama.weights.gguf_writer import GGUFFileWriter, named_tokenizer
from llama.weights.meta_writer import MetaWriter
from llama.weights.open_model import open_model
from llama.weights.reader import WeightReader, by_rows
from llama.weights.shapes import expected_shapes
from llama.weights.writers import WRITERS
from llama.weights.writing import FileWriter

WRITER_OF = {"hf": "huggingface", "meta": "meta", "gguf": "gguf"}
"""By what `--format` takes, that of `WRITERS` which writes it."""
TOLD_EVERY = 10.0
"""Seconds between lines on how far the weights have come."""
_Q8_0_BYTES = 34 / 32
"""Of one number: 32 of 8 bits have one scale of 16."""


def export(options: ExportOptions) -> int:
    """Write what is asked for, prove it, and say how it is used. Raises `UserError` before any
    weights are read, and `TrainingError`, nothing being left, where what was written is not what
    it is to be."""
    raise_if(check_export(options))
    keep_freed_memory()
    if options.check_server is not None:
        return check_server(options)
    opened = open_for_use(options)
    job = Job.of(options, opened)
    raise_if(_misfits(job))
    reader = opened.source.reader
    dtype = written_type(options, reader)
    if job.format not in OF_ADAPTER:
        _require_room(job.folder, _bytes(job, dtype))
        if options.dtype is None and (line := narrowed(reader, reader.config, dtype)):
            note(line)
    try:
        if job.format == "peft":
            proof = write_peft(job)
        elif job.format == "gguf-lora":
            proof = write_gguf_lora(job)
        else:
            proof = _write_model(job, dtype)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingError(f"--output_dir: {job.folder}: {reason}") from None
    _tell(job, dtype, proof)
    return 0


def _misfits(job: Job) -> list[str]:
    """What of the model the format cannot say."""
    options, config = job.options, job.opened.source.config
    if job.format in OF_ADAPTER:
        return []
    where = f"--format {job.format}"
    cls = WRITERS[WRITER_OF[job.format]]
    problems = [f"{where}: {misfit}" for misfit in cls.misfits(config)]
    if job.format == "meta":
        problems += MetaWriter.shard_problems(config, options.shards)
    if job.format == "gguf":
        path = named_tokenizer(job.opened.tokenizer_path)
        tokenizer = load_tokenizer(path)
        problem = gguf_problem(tokenizer) or rows_problem(tokenizer, config.vocab_size)
        if problem:
            problems.append(f"{where}: the tokenizer {path} {problem}; give another --tokenizer")
    return problems


def _bytes(job: Job, dtype: torch.dtype) -> int:
    config: ModelConfig = job.opened.source.config
    item = _Q8_0_BYTES if job.options.quantize else dtype.itemsize
    return int(sum(prod(shape) for shape in expected_shapes(config).values()) * item)


def _require_room(folder: Path, need: int) -> None:
    place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < need:  # some file systems have no size at all
        raise UserError(
            f"--output_dir: {folder} has room for {usage.free:,} bytes, and {need:,} are to be "
            "written: make room, or give another folder"
        )


def _write_model(job: Job, dtype: torch.dtype) -> Proof | None:
    source, options = job.opened.source, job.options
    reader: WeightReader = source.reader
    if job.layers:
        reader = Merged(reader, job.layers, job.state)
    writer = WRITERS[WRITER_OF[job.format]](
        job.folder, source.config, source, job.opened.tokenizer_path
    )
    writer.template = job.template
    if isinstance(writer, MetaWriter):
        writer.shards = options.shards
    if isinstance(writer, GGUFFileWriter):
        writer.quantize = options.quantize
    proofs: list[Proof] = []
    if options.verify:
        writer.verify = lambda partial: proofs.append(
            prove(job, open_model(str(partial)), options.quantize or dtype)
        )
    try:
        _write_weights(writer, reader, source.config, dtype)
        for line in writer.finish():
            note(line)
    except BaseException:
        writer.abandon()
        raise
    return proofs[0] if proofs else None


def _write_weights(
    writer: FileWriter, reader: WeightReader, config: ModelConfig, dtype: torch.dtype
) -> None:
    shapes, last_told = expected_shapes(config), time.perf_counter()
    for number, (name, shape) in enumerate(shapes.items()):
        writer.add(name, _rounded(reader, name, shape, dtype))
        if time.perf_counter() - last_told > TOLD_EVERY:
            note(f"{number + 1:,} of {len(shapes):,} tensors are written")
            last_told = time.perf_counter()


def _rounded(
    reader: WeightReader, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """A weight, rounded once: some rows at a time, so that nothing wider than it is ever whole."""
    whole = torch.empty(shape, dtype=dtype)
    for start, rows in by_rows(reader, name, shape):
        extremes = torch.stack(torch.aminmax(rows)).float()
        if not torch.isfinite(extremes.to(dtype)).all():
            raise UserError(_not_finite(reader.place(name), name, extremes, dtype))
        whole[start : start + len(rows)] = rows
    return whole


def _not_finite(place: str, name: str, extremes: torch.Tensor, dtype: torch.dtype) -> str:
    if not torch.isfinite(extremes).all():
        return f"{place}: {name}: the weights, merged, hold NaN or infinity"
    largest = float(extremes.abs().max())
    return (
        f"{place}: {name}: a weight of {largest:g} is too large for {dtype}: give --dtype bfloat16"
    )


def _tell(job: Job, dtype: torch.dtype, proof: Proof | None) -> None:
    options = job.options
    kind = options.quantize or str(dtype).removeprefix("torch.")
    if job.format in OF_ADAPTER:
        kind = "float32"
    files = sorted(path for path in job.folder.rglob("*") if path.is_file())
    document: dict[str, Any] = {
        "output_dir": str(job.folder),
        "format": job.format,
        "dtype": kind,
        "bytes": sum(path.stat().st_size for path in files),
        "files": [str(path.relative_to(job.folder)) for path in files],
        "verified": proof is not None,
        "largest_difference": proof.apart if proof else None,
        "largest_logit": proof.largest if proof else None,
        "difference_share": proof.share if proof else None,
    }
    if options.json:
        print(json_text(document))
        return
    for line in closing(job, document):
        print(line)
