"""`evaluate --adapter RUN` without `--data`: the rows that the run itself was evaluated on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.run_folder import RECORD, run_of
from llama.notes import note
from llama.settings import EvaluateOptions

_READ_ALIKE = ("seq_len", "pack", "overlong", "columns")
"""Options by which rows become the tokens that they were in the run."""


def with_rows_of_run(options: EvaluateOptions) -> EvaluateOptions:
    """`options`; where they name neither rows nor a task, with the held-out rows of the run that
    `--adapter` is of, read as it read them, unless they are told otherwise. Raises `UserError`
    where the run has none in files of their own."""
    if options.data or options.task is not None or options.adapter is None:
        return options
    run = run_of(options.adapter)
    if run is None:
        return options
    try:
        record: dict[str, Any] = json.loads((run / RECORD).read_bytes())
        was = record["options"]
        held_out = [data for data in record["data"] if data["option"] == "eval_data"]
        if was["eval_split"] is not None or not held_out:
            raise UserError(f"--data: required: {_why(run, was)}")
        values: dict[str, Any] = {name: was[name] for name in _READ_ALIKE}
        values["columns"] = tuple((new, old) for new, old in was["columns"])
        if record["precision"] == "fp32":
            values["precision"] = "float32"
        files = [Path(file) for data in held_out for file in data["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--data: required: {run / RECORD} cannot be read: {error}") from None
    default = EvaluateOptions()
    told = {name for name in values if getattr(options, name) != getattr(default, name)}
    note(f"the rows held out by {run}: {', '.join(map(str, files))}")
    read_alike = {name: value for name, value in values.items() if name not in told}
    return replace(options, data=files, **read_alike)


def _why(run: Path, was: dict[str, Any]) -> str:
    if was["eval_split"] is None:
        return f"{run} held no rows out"
    return f"{run} held out a part of its rows (--eval_split), which are in no file of their own"
