"""Several runs side by side: their curves over one another, what differs, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from llama.files.run_folder import METRICS, RECORD, SAMPLES, SUMMARY
from llama.pages.page import Block, Columns, Drawing, Section, Table, Text
from llama.pages.run import plots, words
from llama.pages.run.files import HEADINGS, RunFiles
from llama.pages.run.recorded import checks, flat, reproduce
from llama.pages.run.sections import outcome
from llama.pages.run.words import NONE

_COMPARED = (
    *("options", "deepspeed", "topology", "precision", "device", "packages", "python", "sha256"),
    *("model_fingerprint", "steps", "model", "plan"),
)
"""Of run.json, what a difference between two runs may come from."""
_OF_EACH_RUN = ("options.output_dir", "options.resume", "options.json")
"""Settings that change nothing of what is trained."""


def sections(runs: Sequence[RunFiles]) -> list[Section]:
    """Of the page of several `runs`."""
    return [
        Section("Side by side", _curves(runs)),
        Section("Outcomes", [_outcomes(runs)]),
        Section("What differs between their settings", [_differences(runs)]),
        Section("Answers", _answers(runs)),
        *(Section(f"Run {run.label}", [*_said(run), checks(run), *reproduce(run)]) for run in runs),
    ]


def _curves(runs: Sequence[RunFiles]) -> list[Block]:
    figures = (
        (plots.compared_training(runs), "loss"),
        (plots.compared_held_out(runs), "eval_loss"),
        (plots.compared_rates(runs), "tokens_per_second"),
    )
    drawn: list[Block] = [
        Drawing(figure, source=f"{METRICS} of each run: {field} by step")
        for figure, field in figures
        if figure is not None
    ]
    return drawn or [Text("None of them has written a step.")]


def _outcomes(runs: Sequence[RunFiles]) -> Table:
    tables = [outcome(run) for run in runs]
    rows = [
        (name, *(table.rows[index][1] for table in tables))
        for index, (name, _) in enumerate(tables[0].rows)
    ]
    return Table(("", *(run.label for run in runs)), rows, source=tables[0].source, wide=True)


def _differences(runs: Sequence[RunFiles]) -> Block:
    """Of a run whose program did not record a thing yet, that is not called a difference."""
    of_each = [
        dict(leaf for name in _COMPARED for leaf in flat({name: run.record.get(name)}))
        for run in runs
    ]
    names = list(dict.fromkeys(name for leaves in of_each for name in leaves))
    rows = []
    for name in names:
        shown = [words.any_value(leaves[name]) if name in leaves else NONE for leaves in of_each]
        if len(set(shown)) > 1 and name not in _OF_EACH_RUN:
            rows.append((name, *shown))
    if not rows:
        return Text("Nothing that their run.json records.", source=f"{RECORD} of each run")
    head = ("", *(run.label for run in runs))
    return Table(head, rows, source=f"{RECORD} of each run", wide=True)


def _answers(runs: Sequence[RunFiles]) -> list[Block]:
    """Prompts that several of them answered, with the text of each."""
    prompts = dict.fromkeys(sample["prompt"] for run in runs for sample in run.samples)
    blocks: list[Block] = []
    for prompt in prompts:
        found = [
            (run.label, sample)
            for run in runs
            for sample in run.samples
            if sample["prompt"] == prompt
        ]
        if len(found) > 1:
            title = HEADINGS.get(found[0][1]["rows"], "")
            befores = dict.fromkeys(sample["before"] for _, sample in found)
            columns = [
                ("prompt", prompt),
                *(("before", before) for before in befores),
                *((f"after: {label}", sample["after"]) for label, sample in found),
            ]
            blocks.append(Columns(columns, title=title, source=SAMPLES, wide=True))
    return blocks


def _said(run: RunFiles) -> list[Block]:
    rows = [("folder", str(run.folder))]
    if "error" in run.summary:
        rows.append(("what ended it", str(run.summary["error"])))
    rows += [("missing or not read", problem) for problem in run.problems]
    return [Table((), rows, source=f"{SUMMARY} and the run's folder", wide=True)]
