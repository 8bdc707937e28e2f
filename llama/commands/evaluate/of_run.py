"""`evaluate --adapter RUN` without `--data`: the rows that the run itself was evaluated on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama.data.holding import HoldOut
from llama.data.prepare import Prepared
from llama.errors import UserError
from llama.files.run_folder import RECORD, run_of
from llama.notes import note
from llama.settings import EvaluateOptions

_READ_ALIKE = ("seq_len", "pack", "overlong", "columns")
"""Options by which rows become the tokens that they were in the run."""


@dataclass(frozen=True)
class HeldOut:
    """The part of its rows that a run held out by --eval_split. It is in no file of its own; it
    follows from what the examples say, so the files and how they are read decide it."""

    run: Path
    asked: HoldOut
    record: Mapping[str, Any]
    """What `run.json` says of that part."""

    def check(self, data: Prepared) -> None:
        """Raise `UserError` where `data` is not that part: it would have rows in it that the run
        was trained on."""
        report = data.report
        found = {
            "sha256": data.sha256,
            "examples": report.examples,
            "tokens": report.tokens,
            "supervised_tokens": report.supervised_tokens,
        }
        differ = [name for name, value in found.items() if self.record[name] != value]
        if differ:
            why = (
                "the files have changed since"
                if "sha256" in differ
                else "they are read in another way; give no other template, tokenizer or --seq_len"
            )
            raise UserError(
                f"--data: required: the rows that {self.run} held out by --eval_split "
                f"{self.asked.split:g} cannot be found again: {why}"
            )


def with_rows_of_run(options: EvaluateOptions) -> tuple[EvaluateOptions, HeldOut | None]:
    """`options`; where they name neither rows nor a task, with the held-out rows of the run that
    `--adapter` is of, read as it read them, unless they are told otherwise. Where they are a part
    of what the options then name, which. Raises `UserError` where the run has none."""
    if options.data or options.task is not None or options.adapter is None:
        return options, None
    run = run_of(options.adapter)
    if run is None:
        return options, None
    try:
        record: dict[str, Any] = json.loads((run / RECORD).read_bytes())
        was = record["options"]
        held_out = [data for data in record["data"] if data["option"] == "eval_data"]
        files = [Path(file) for data in held_out for file in data["files"]]
        values: dict[str, Any] = {name: was[name] for name in _READ_ALIKE}
        values["columns"] = tuple((new, old) for new, old in was["columns"])
        if record["precision"] == "fp32":
            values["precision"] = "float32"
        part = None
        if was["eval_split"] is not None:
            part = HeldOut(run, HoldOut(was["eval_split"], was["seed"]), held_out[0])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"--data: required: {run / RECORD} cannot be read: {error}") from None
    if not files:
        raise UserError(f"--data: required: {run} held no rows out")
    default = EvaluateOptions()
    told = {name for name in values if getattr(options, name) != getattr(default, name)}
    by = f" by --eval_split {part.asked.split:g}, of" if part else ":"
    note(f"the rows held out by {run}{by} {', '.join(map(str, files))}")
    read_alike = {name: value for name, value in values.items() if name not in told}
    return replace(options, data=files, **read_alike), part
