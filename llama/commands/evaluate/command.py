"""`launcher/evaluate.py`: the loss of a model on rows, or its answers to questions, with or without
an adapter."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.limits import check_examples, degree_problems
from llama.assembly.model import ready_model
from llama.assembly.use import As, loss_of_share, mean_loss, sides
from llama.commands.evaluate.asking import ask, check_questions
from llama.commands.evaluate.of_run import HeldOut, with_rows_of_run
from llama.commands.evaluate.report import (
    document,
    document_of_losses,
    lines,
    lines_of_losses,
    rows,
    warnings,
)
from llama.commands.evaluate.respondent import ModelRespondent, Writer
from llama.data.prepare import Prepared, Reading
from llama.errors import UserError, raise_if
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.launch.launchers import check_launch
from llama.launch.processes import launched_world_size, meet_processes, stop_processes
from llama.model.transformer import Transformer
from llama.notes import note
from llama.objectives.kinds import SFT
from llama.parallel.agreement import on_every, on_main
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import EvaluateOptions, check_evaluate
from llama.tasks.rows import TaskFile, read_task


def evaluate(options: EvaluateOptions) -> int:
    """Print the mean loss over supervised tokens and its perplexity, or the shares of right
    answers. Raises `UserError` before any weights load."""
    check_launch()
    options, held_out = with_rows_of_run(options)
    raise_if(check_evaluate(options, launched_world_size()))
    device = meet_processes()
    try:
        mesh = create_mesh(options.tensor_parallel)
        rows = partial(_on_rows, held_out)
        run = rows if options.task is None else partial(_on_task, options.task)
        result, text = run(options, mesh, device)
    finally:
        stop_processes()
    if mesh.is_main:
        print(json_text(result) if options.json else text)
    return 0


def _opened(options: EvaluateOptions) -> Opened:
    opened = open_for_use(options)
    raise_if(degree_problems(options.tensor_parallel, opened.source.config))
    return opened


def _ready(opened: Opened, options: EvaluateOptions, mesh: Mesh) -> Transformer:
    tp = mesh.tensor_parallel
    return on_every(
        mesh,
        lambda: ready_model(
            opened.source, opened.adapter, options.precision, tp, base=options.base
        ),
    )


def _on_rows(
    held_out: HeldOut | None, options: EvaluateOptions, mesh: Mesh, device: torch.device
) -> tuple[dict[str, Any], str]:
    """The loss: each group of ranks that shares a model takes its part of the rows. `held_out` says
    which of them are meant, None all."""

    def read() -> tuple[Opened, Prepared]:
        opened = _opened(options)
        template = opened.template(options.template)
        reading = Reading(
            options.seq_len, options.pack, options.overlong, options.columns, options.data_cache
        )
        if held_out is None:
            data = SFT.prepare(options.data, template, opened.tokenizer, reading)
        else:
            asked = held_out.asked
            _, data = SFT.prepare_split(options.data, template, opened.tokenizer, reading, asked)
            held_out.check(data)
        check_examples(data.report.source, data.examples, opened.source.config, opened.tokenizer)
        return opened, data

    opened, data = on_every(mesh, read)
    _require_sameness(mesh, data.sha256, "--data")
    note(data.report.text())
    model = _ready(opened, options, mesh)
    rows, micro_batch = data.packed, options.micro_batch

    def share(as_: As) -> tuple[float, int]:
        with as_():
            return loss_of_share(model, rows, micro_batch, mesh, device)

    losses, supervised = {}, 0
    for name, as_ in sides(model, opened.adapter is not None, options.compare).items():
        own = on_every(mesh, partial(share, as_))
        losses[name], supervised = mean_loss(own, mesh, device)
    return document_of_losses(losses, supervised), lines_of_losses(losses, supervised)


def _on_task(
    path: Path, options: EvaluateOptions, mesh: Mesh, device: torch.device
) -> tuple[dict[str, Any], str]:
    """The answers, judged."""

    def read() -> tuple[Opened, Writer, TaskFile]:
        opened = _opened(options)
        task = read_task(path, options.columns)
        writer = Writer(opened.template(options.template), opened.tokenizer)
        check_questions(task, writer, opened.source.config, options.max_new_tokens)
        return opened, writer, task

    opened, writer, task = on_every(mesh, read)
    _require_sameness(mesh, repr(task.questions), "--task")
    for name, count in task.unread.items():
        note(f"{task.path}: field '{name}' of {count:,} rows is not read")
    for (new, old), count in task.own.items():
        note(f"{task.path}: {count:,} rows have no '{old}' and are read by their own '{new}'")
    model = _ready(opened, options, mesh)
    respondent = ModelRespondent(
        model,
        writer,
        device,
        options.max_new_tokens,
        options.micro_batch,
        mesh.tensor_parallel.of_first,
    )
    answers = {
        name: ask(task, respondent, mesh, options.micro_batch, as_, name)
        for name, as_ in sides(model, opened.adapter is not None, options.compare).items()
    }
    for warning in warnings(task, answers):
        note(warning)
    if options.output is not None:
        output, content = options.output, rows(task, answers).encode()
        on_main(mesh, lambda: _write(output, content))
    return document(task, answers), lines(task, answers)


def _write(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror or error}") from None


def _require_sameness(mesh: Mesh, content: str, option: str) -> None:
    """Raise UserError on every rank where not all read the same: with other rows, ranks of one
    model would wait for each other for ever."""
    number = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "little")
    highest, lowest = mesh.highest(number, -number)
    if highest != -lowest:
        raise UserError(f"{option}: the ranks were given different rows; give all the same file")
