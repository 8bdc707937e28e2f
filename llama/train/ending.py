"""What is said of a run once it has ended, however it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama.errors import TrainingError
from llama.files.atomic import write_file
from llama.files.run_folder import REPORT
from llama.pages.run.report import report
from llama.train.following import next_commands
from llama.train.reporter import shown
from llama.train.start.inputs import Inputs
from llama.train.start.resume import Start

UNKNOWN = "which step is best cannot be known, as no rows are held out (--eval_data, --eval_split)"


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


def finished_already(start: Start) -> list[str]:
    """What a run is told that is started again after its end."""
    summary = start.finished or {}
    way, after = "raise --epochs or --max_steps", summary.get("early_stop")
    if after is not None:
        way = f"raise --early_stop above {after}, or leave it out"
    return [*start.notes, f"{start.folder} is finished; to go on, {way}"]


def closing(inputs: Inputs, folder: Path, summary: dict[str, Any], precision: str) -> list[str]:
    """The last lines of a run that came to its end: what it has learnt, where that is, and the
    commands that come next. `precision` is what it computed in."""
    method = inputs.method
    losses = ", ".join(map(shown, summary["epoch_losses"]))
    result = f"{method.RESULT_TITLE}: {folder / method.RESULT}"
    if inputs.held_out is not None and summary["kept_step"] != summary["steps"]:
        result += f", of step {summary['kept_step']}; of the last, {folder / method.LAST}"
    following = next_commands(inputs, folder, precision)
    return [
        f"average loss of each epoch: {losses}",
        *_held_out(inputs, summary),
        result,
        *(["next:"] if following else []),
        *(f"  {line}" for line in following),
    ]


def _held_out(inputs: Inputs, summary: dict[str, Any]) -> list[str]:
    if inputs.held_out is None:
        return [f"{UNKNOWN}: what the run gives is of its last step, {summary['steps']}"]
    best, last = summary.get("best_step"), summary["steps"]
    before, lowest = summary["eval_loss_before"], summary.get("best_eval_loss")
    line = f"held-out loss: {shown(before)} before, "
    if best is None:
        return [f"{line}{shown(summary['eval_loss'])} at the end; no step has one to be kept for"]
    if best == last:
        line += f"{shown(lowest)} at the end, step {best} (best, kept)"
    else:
        kept = "kept" if summary["kept_step"] == best else "not kept: --best false"
        line += f"{shown(lowest)} at step {best} (best, {kept}), "
        line += f"{shown(summary['eval_loss'])} at the end"
    lines = [line]
    if before is not None and before <= lowest:
        lines.append("no step has come below the held-out loss before training")
    return lines
