"""`launcher/report.py`: one HTML file of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.files.run_folder import REPORT
from llama.pages.run.files import RunFiles
from llama.pages.run.report import is_page_of, page_of, read_runs
from llama.settings import ReportOptions


def report(options: ReportOptions) -> int:
    """Write the page and print its path. Raises `UserError` where a folder is no run, or the page
    cannot be written."""
    if options.output is not None and options.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: {options.output}: the page is HTML; expected a name in .html")
    runs = read_runs(options.runs)
    path = options.output or (options.runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    try:
        _require_its_own(path, runs)
        write_file(path, page_of(runs).encode())
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror or error}") from None
    print(json_text(_told(path, runs)) if options.json else path)
    return 0


def _require_its_own(path: Path, runs: list[RunFiles]) -> None:
    """Raise `UserError` where something else would be written over: not the page of the same runs,
    nor the one that a run keeps in its own folder."""
    own = len(runs) == 1 and path.resolve() == (runs[0].folder / REPORT).resolve()
    if own or not path.is_file() or not path.stat().st_size or is_page_of(path, runs):
        return
    raise UserError(
        f"--output: {path} holds something other than the page of "
        f"{'this run' if len(runs) == 1 else 'these runs'}; give another name, or remove it"
    )


def _told(path: Path, runs: list[RunFiles]) -> dict[str, Any]:
    return {
        "report": str(path),
        "runs": [
            {
                "folder": str(run.folder),
                "status": run.status,
                "steps": run.last_step,
                "eval_loss": run.evaluations[-1].loss if run.evaluations else None,
                "lowest_eval_loss": run.best and run.best.loss,
                "lowest_at_step": run.best and run.best.step,
                "problems": run.problems,
            }
            for run in runs
        ],
    }
