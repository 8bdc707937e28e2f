"""`launcher/data.py`: what a run would learn from these rows, before any weights load."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama.assembly.limits import check_examples, check_tokenizer
from llama.commands.data import page
from llama.commands.data.facts import (
    Duplicates,
    SetFacts,
    bins,
    chosen_rows,
    duplicates,
    pieces,
    set_facts,
    whole_row,
    why_left_out,
)
from llama.commands.terminal import this_terminal
from llama.data.holding import HoldOut
from llama.data.prepare import Prepared, Reading
from llama.data.rows import bundled
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.model.config import ModelConfig
from llama.notes import note
from llama.objectives.kinds import SFT
from llama.settings import DataOptions, check_data
from llama.tokenizer.base import Template, Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.open_model import tokenizer_of


def show_data(options: DataOptions) -> int:
    """Print what is in the data. Raises `UserError` as `train` would of the same rows."""
    raise_if(check_data(options))
    if options.seed and options.eval_split is None:
        note("--seed: has no effect without --eval_split")
    config, tokenizer = _tokenizer(options)
    template = load_template(options.template, tokenizer)
    sets = _sets(options, config, template, tokenizer)
    training, held_out = sets[0], sets[1] if len(sets) > 1 else None
    found = duplicates(training, held_out)
    shown = []
    for row, why in chosen_rows(training, [int(number) for number in options.rows]):
        whole = whole_row(row, template, tokenizer)
        left_out = why_left_out(row, whole, training, held_out)
        shown.append(page.Shown(row, why, whole, left_out))
    if options.json:
        print(json_text(_document(sets, found, shown, template, tokenizer)))
        return 0
    terminal = this_terminal()
    lines = [*page.overview(sets, template.name, terminal), ""]
    for facts in sets[:1]:
        lines += [*page.histogram(facts, terminal), ""]
    lines += [*page.repetitions(found, sets, terminal), "", *page.legend(terminal)]
    for row in shown:
        lines += ["", *page.shown_row(row, sets[0], tokenizer, terminal)]
    print("\n".join(lines))
    return 0


def _tokenizer(options: DataOptions) -> tuple[ModelConfig, Tokenizer]:
    config, beside = tokenizer_of(options.model)
    path = options.tokenizer or beside
    if path is None:
        raise UserError(
            f"--model {options.model}: no tokenizer was found beside it: give --tokenizer"
        )
    tokenizer = load_tokenizer(path)
    check_tokenizer(path, tokenizer, config, options.model)
    return config, tokenizer


def _sets(
    options: DataOptions, config: ModelConfig, template: Template, tokenizer: Tokenizer
) -> list[SetFacts]:
    """The training rows, and the held-out ones if there are any."""
    data, eval_data = options.data, options.eval_data
    if not data:
        data = [bundled("instructions_200")]
        eval_data = eval_data or ([] if options.eval_split else [bundled("heldout_40")])
    reading = Reading(
        options.seq_len, options.pack, options.overlong, options.columns, options.data_cache
    )
    prepared: dict[str, Prepared] = {}
    problems: list[str] = []
    if options.eval_split is not None:
        asked = HoldOut(options.eval_split, options.seed)
        both = SFT.prepare_split(data, template, tokenizer, reading, asked)
        prepared = dict(zip(("data", "eval_data"), both, strict=True))
    else:
        for option, paths in {"data": data, "eval_data": eval_data}.items():
            try:
                if paths:
                    prepared[option] = SFT.prepare(paths, template, tokenizer, reading)
            except UserError as error:
                problems += error.problems
    for found in prepared.values():
        try:
            check_examples(found.report.source, found.examples, config, tokenizer)
        except UserError as error:
            problems += error.problems
    raise_if(problems)
    return [
        set_facts(option, found, template, tokenizer, options.seq_len)
        for option, found in prepared.items()
    ]


def _document(
    sets: list[SetFacts],
    found: Duplicates,
    shown: list[page.Shown],
    template: Template,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    return {
        "template": template.name,
        **{facts.option: _of_set(facts) for facts in sets},
        "duplicates": {
            "data": found.training,
            "eval_data": found.held_out,
            "eval_data_in_data": found.shared,
        },
        "shown": [
            {
                "row": row.row.number,
                "tokens": len(row.whole.ids),
                "supervised_tokens": row.whole.supervised,
                "left_out": row.left_out or None,
                "pieces": [vars(piece) for piece in pieces(row.whole, tokenizer)],
            }
            for row in shown
        ],
    }


def _of_set(facts: SetFacts) -> dict[str, Any]:
    report, lengths = facts.prepared.report, facts.lengths
    return {
        "files": [
            {
                "path": str(file.path),
                "rows": file.rows,
                "form": file.form,
                "columns": file.columns,
            }
            for file in facts.files
        ],
        "rows": report.rows,
        "examples": report.examples,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "packed_rows": len(facts.prepared.packed),
        "lengths": {
            "shortest": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "longest": int(lengths.max()),
            "fit": facts.fitting,
            "histogram": [
                {"from": first, "to": last, "rows": rows}
                for first, last, rows in bins(lengths, facts.seq_len)
            ],
        },
        "findings": report.findings,
        "said": report.text(),
    }
