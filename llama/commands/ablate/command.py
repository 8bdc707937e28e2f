"""What each technique saves and what it costs, measured on this machine: `launcher/ablate.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from llama.assembly.limits import check_examples, check_length
from llama.assembly.model import default_device, find_tokenizer
from llama.commands.ablate import report
from llama.commands.ablate.grid import grid
from llama.commands.ablate.measure import Data, Result, measured
from llama.data.packing import PackedRow
from llama.data.prepare import Reading
from llama.data.random_rows import random_rows
from llama.data.rows import bundled
from llama.engine import bf16_supported, fp16_supported, start_processes
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.launch.launchers import check_launch
from llama.launch.processes import launched_world_size, stop_processes
from llama.objectives.kinds import SFT
from llama.parallel.mesh import create_mesh
from llama.settings import AblateOptions, check_ablate
from llama.tokenizer.templates import load_template
from llama.weights.open_model import ModelSource, open_model

_HELD_OUT = 8
"""Rows of random tokens that are held out."""


def ablate(options: AblateOptions) -> int:
    """Measure every combination, write the page and the figures; returns the exit code. Raises
    `UserError` before any weights load."""
    check_launch()
    problems = check_ablate(options)
    if launched_world_size() > 1:
        problems.append("ablate measures one process: start it without a launcher of several")
    raise_if(problems)
    source = open_model(options.model, default_device())
    data = _read_data(options, source)
    device = start_processes()
    try:
        raise_if(_missing_precisions(options))
        mesh = create_mesh(1)
        results: list[Result] = []
        for case in grid(options):
            results.append(measured(case, options, source, data, mesh, device))
            print(_line(results[-1]), file=sys.stderr, flush=True)
    finally:
        stop_processes()
    document = report.document(results, options, device)
    _write(document, results, options.output_dir)
    print(report.verdict_table(document), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json_text(document))
    return 0


def _missing_precisions(options: AblateOptions) -> list[str]:
    has = {"fp16": fp16_supported(), "bf16": bf16_supported(), "float32": True}
    return [
        f"--precision: {name} is not supported on this device"
        for name in options.precision
        if not has[name]
    ]


def _line(result: Result) -> str:
    if result.why_not is not None:
        return f"{result.case.name:28} not measured: {result.why_not}"
    return (
        f"{result.case.name:28} peak {result.peak or 0:14,} bytes (planned "
        f"{result.planned_peak:14,}), {result.seconds:.3f} s a step, loss {result.loss:.4f}"
    )


def _write(document: report.Document, results: list[Result], folder: Path) -> None:
    try:
        report.write(document, results, folder)
    except OSError as error:
        raise UserError(f"--output_dir: {folder}: {error.strerror or error}") from None
    print(f"written: {folder}/ablation.md, ablation.json and the figures", file=sys.stderr)


def _read_data(options: AblateOptions, source: ModelSource) -> Data:
    """The rows of both kinds; random tokens, each row one document, for random weights."""
    if not options.data and source.tokenizer_path is None:
        check_length(options.seq_len, source.config)
        count, vocabulary = (options.steps + 1) * options.rows, source.config.vocab_size
        return Data(
            random_rows(vocabulary, count, options.seq_len, 2 * options.seed),
            random_rows(vocabulary, _HELD_OUT, options.seq_len, 2 * options.seed + 1),
        )
    tokenizer = find_tokenizer(source, options.tokenizer)
    template = load_template(options.template, tokenizer)
    found: list[list[PackedRow]] = []
    default = [] if options.data else [bundled("heldout_40")]
    for paths in (options.data or [bundled("instructions_200")], options.eval_data or default):
        if not paths:
            found.append([])
            continue
        reading = Reading(
            options.seq_len, True, options.overlong, options.columns, options.data_cache
        )
        rows = SFT.prepare(paths, template, tokenizer, reading)
        check_examples(rows.report.source, rows.examples, source.config, tokenizer)
        found.append(list(rows.packed))
    training, held_out = found
    if len(training) < options.rows:
        raise UserError(
            f"--rows: the data fills {len(training)} rows of {options.seq_len} tokens, and a step "
            f"takes {options.rows}: lower --rows or --seq_len"
        )
    return Data(training, held_out)
