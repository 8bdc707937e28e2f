"""What a run will need and take, before it is paid for: `launcher/plan.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama.commands.plan import report
from llama.commands.plan.inputs import Inputs, plan_of, read_inputs
from llama.commands.plan.suggest import FILE, Suggestion, suggest
from llama.errors import UserError
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.planning.plan import Plan
from llama.settings import PlanOptions

SUGGESTED = Path("plan")
"""The folder that a suggestion goes to, where none is given."""


def plan(options: PlanOptions) -> int:
    """Print the plan, and write it where a folder is given. Gives 0 where it fits and 1 where not.
    Raises `UserError`."""
    inputs = read_inputs(options)
    folder = options.output_dir
    if not options.suggest:
        found = plan_of(inputs, inputs.deepspeed, options)
        _say(found, inputs, folder, None)
    else:
        folder = folder or SUGGESTED
        suggestion = suggest(inputs)
        found = suggestion.plan
        _write_json(suggestion, folder)
        command = suggestion.command(folder)
        _say(found, inputs, folder, command, suggestion.options)
        if line := suggestion.other_batch:
            print(f"\n{line}")
        print(f"\n{folder / FILE} is written; run:\n\n  {command}")
        for line in suggestion.unsaid():
            print(f"\n{line}")
    if options.json:
        print(json_text(found.as_json()))
    return 0 if found.fits else 1


def _say(
    found: Plan,
    inputs: Inputs,
    folder: Path | None,
    command: str | None,
    options: PlanOptions | None = None,
) -> None:
    options = options or inputs.options
    title = report.headline(found, options.model, options.gpu)
    stream = sys.stderr if inputs.options.json else sys.stdout
    print(f"{title}\n{report.table(found)}", file=stream)
    if folder is not None:
        _written(folder, lambda: report.write(found, folder, title, options.gpu, command))
        print(f"  {'written':18} {folder}/plan.html, plan.png, plan.json", file=stream)


def _write_json(suggestion: Suggestion, folder: Path) -> None:
    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json_text(suggestion.deepspeed, indent=2) + "\n"
        write_file(folder / FILE, text.encode())

    _written(folder, write)


def _written(folder: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"--output_dir: {folder}: {error.strerror or error}") from None
