"""A run's folder, read as it is: being written, killed, failed before its first step, or whole.

What is missing or cannot be read is None or empty, and is named in `problems`: a report is of what
there is. The files may be anyone's, so that every value is looked at before it is taken for one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.inputs import file_problem, not_found, read_text
from llama.files.json_text import json_text
from llama.files.kinds import TEXTS
from llama.files.run_folder import METRICS, NORMS, RECORD, SAMPLES, SUMMARY

STEP_FIELDS = (
    *("step", "epoch", "loss", "learning_rate", "grad_norm", "loss_scale", "seconds"),
    *("tokens_per_second", "peak_memory_bytes"),
)
HEADINGS = {
    "training": "From the training rows",
    "held-out": "Held out: not among the training rows",
}
"""Of samples, by the rows that they are of."""
LINE_BYTES = 1 << 22
"""More than any line of ours: the norms of 126 layers' adapters take a twentieth of it."""
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Evaluation:
    """One line of metrics.jsonl."""

    step: int
    epoch: float
    """Epochs done, of the one that was going on a part."""
    loss: float | None


@dataclass
class RunFiles:
    """What the files of one run hold."""

    folder: Path
    label: str
    record: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    """Empty until the run has ended."""
    steps: dict[str, list[float | None]] = field(
        default_factory=lambda: {name: [] for name in STEP_FIELDS}
    )
    """A list for each of `STEP_FIELDS`, all equally long; NaN went into the file as null."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Steps without an update, and why."""
    evaluations: list[Evaluation] = field(default_factory=list)
    norms: list[tuple[int, dict[str, float | None]]] = field(default_factory=list)
    """The first and the last that were taken: step, and norm by tensor."""
    samples: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def best(self) -> Evaluation | None:
        """The first of the lowest held-out losses that a step has come to."""
        finite = [one for one in self.evaluations if one.loss is not None and one.step > 0]
        return min(finite, key=lambda one: one.loss or 0.0, default=None)

    @property
    def status(self) -> str:
        """finished, interrupted or failed; `no end recorded` of a run that is still going, or that
        was killed."""
        status = self.summary.get("status")
        return status if isinstance(status, str) else "no end recorded"

    @property
    def is_full(self) -> bool:
        """Whether every parameter trains, and there is no adapter."""
        return self.of_record("options", "method") == "full"

    @property
    def last_step(self) -> int:
        steps = self.steps["step"]
        return int(steps[-1] or 0) if steps else 0

    def of_record(self, *path: str) -> Any:
        """What run.json has at `path`; None where it is not there."""
        return at(self.record, *path)


def at(document: Any, *path: str) -> Any:
    """The value at `path` of nested objects; None where there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def number(value: Any) -> float | None:
    """`value`, if it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def read_run(folder: Path, label: str) -> RunFiles:
    """Read the run in `folder`, which `check_runs` has passed."""
    run = RunFiles(folder, label)
    run.record = _object(folder / RECORD, run.problems, "run.json says what was run")
    if (folder / SUMMARY).exists():
        run.summary = _object(folder / SUMMARY, run.problems, "")
    for line in _lines(folder / METRICS, run.problems):
        _add_metrics(run, line)
    for line in _lines(folder / NORMS, run.problems, optional=True):
        step, norms = number(line.get("step")), line.get("norms")
        if step is not None and isinstance(norms, dict):
            taken = {str(name): number(value) for name, value in norms.items()}
            run.norms = [*run.norms[:1], (int(step), taken)]
    for line in _lines(folder / SAMPLES, run.problems, optional=True):
        texts = {
            name: text
            for name in ("prompt", "before", "after")
            if isinstance(text := line.get(name), str)
        }
        rows = line.get("rows", "held-out")  # before samples had the field, all were
        if len(texts) == 3 and isinstance(rows, str) and rows in HEADINGS:
            run.samples.append({**texts, "rows": rows})
        elif len(texts) == 3:
            expected, found = " or ".join(HEADINGS), json_text(rows)[:40]
            run.problems.append(
                f"{SAMPLES}: a line is left out: rows: expected {expected}, found {found}"
            )
        else:
            run.problems.append(f"{SAMPLES}: a line without prompt, before and after is left out")
    return run


def check_runs(folders: list[Path]) -> None:
    """Raise `UserError` with a line for each of `folders` that holds no run."""
    problems = []
    seen: set[str] = set()
    for folder in folders:
        resolved = os.path.realpath(folder)
        if resolved in seen:
            problems.append(f"{folder}: given twice; keep one")
        elif not os.path.lexists(folder):
            problems.append(f"{folder}: {not_found(folder)}")
        elif not os.path.isdir(folder):
            problems.append(f"{folder}: is a file; give the folder of a run{_above(folder)}")
        elif not any(os.path.exists(folder / name) for name in (RECORD, SUMMARY, METRICS)):
            problems.append(
                f"{folder}: holds no run: there is no {RECORD}, {METRICS} or {SUMMARY}"
                f"{_above(folder)}"
            )
        seen.add(resolved)
    if problems:
        raise UserError(problems)


def _above(path: Path) -> str:
    """A hint, where `path` lies in a run."""
    for folder in list(path.absolute().parents)[:3]:
        if os.path.exists(folder / RECORD):
            return f"; the run is {folder}"
    return ""


def _object(path: Path, problems: list[str], missing: str) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path))
    except UserError as error:
        problems += [f"{line}; {missing}" if missing else line for line in error.problems]
        return {}
    except (ValueError, RecursionError):
        problems.append(f"{path}: is no JSON")
        return {}
    if not isinstance(document, dict):
        problems.append(f"{path}: expected a JSON object")
        return {}
    return document


def _lines(path: Path, problems: list[str], optional: bool = False) -> Iterator[dict[str, Any]]:
    """Each JSON object of a file of lines. What is none is counted; of the last line, which a run
    may be writing, it is said."""
    if optional and not os.path.lexists(path):
        return
    if problem := file_problem(path, TEXTS):
        problems.append(f"{path.name}: {problem}")
        return
    bad: list[str] = []
    with path.open("rb") as file:
        for count, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), start=1):
            try:
                document = json.loads(line)
                if not isinstance(document, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                if line.endswith(b"\n"):
                    bad.append(f"{path.name}: line {count} is no JSON object, and is left out")
                else:
                    bad.append(f"{path.name}: line {count}, the last, is cut off and left out")
                continue
            yield document
    problems += bad[:SHOWN_PROBLEMS]
    if len(bad) > SHOWN_PROBLEMS:
        problems.append(f"{path.name}: {len(bad) - SHOWN_PROBLEMS} more such lines")


def _add_metrics(run: RunFiles, line: dict[str, Any]) -> None:
    """A step that comes again replaces what was written from there on: that was another try."""
    step = number(line.get("step"))
    if step is None:
        return
    if "eval_loss" in line:
        while run.evaluations and run.evaluations[-1].step >= step:
            run.evaluations.pop()
        epoch = number(line.get("epoch")) or 0
        run.evaluations.append(Evaluation(int(step), epoch, number(line["eval_loss"])))
    elif "loss" in line:
        steps = run.steps["step"]
        while steps and (steps[-1] or 0) >= step:
            for column in run.steps.values():
                column.pop()
        while run.skipped and run.skipped[-1][0] >= step:
            run.skipped.pop()
        for name, column in run.steps.items():
            column.append(number(line.get(name)))
        if line.get("skipped") is True:
            run.skipped.append((int(step), str(line.get("skip_reason", "no reason recorded"))))
