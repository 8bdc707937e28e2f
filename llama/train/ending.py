"""What is said of a run once it has ended, however it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llama.errors import TrainingError
from llama.files.atomic import write_file
from llama.files.run_folder import REPORT
from llama.pages.run.report import report


def in_words(error: BaseException) -> str:
    """What `summary.json` says of what ended a run."""
    return str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"


def draw_report(folder: Path, say: Callable[[str], None]) -> None:
    """Make the page of the run in `folder`, and have `say` tell where it is. A page that cannot be
    made changes nothing of the run: `say` then tells why."""
    try:
        write_file(folder / REPORT, report([folder]).encode())
        say(f"report: {folder / REPORT}")
    except Exception as error:
        say(f"the report could not be made: {in_words(error)}")
