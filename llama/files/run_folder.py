"""The names of what a run's folder holds; README says what each is."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINTS, BEST = "checkpoints", "best"
RECORD, SUMMARY = "run.json", "summary.json"
METRICS, NORMS, SAMPLES = "metrics.jsonl", "norms.jsonl", "samples.jsonl"
REPORT = "report.html"
ADAPTER, MODEL = "adapter", "model"
"""What a run gives, by what it trains."""
REPORTED_TO = "report_to.json"
"""By what each place of --report_to knows the run."""
TENSORBOARD = "tensorboard"

WRITTEN = (RECORD, SUMMARY, METRICS, NORMS, SAMPLES, REPORT, REPORTED_TO)
"""Each as one, so that a killed run may leave a half-made one beside it; the same goes for what
came of the run, which its method names (`llama/methods`)."""

_PEFT = "adapter_config.json"


def adapter_folder(path: Path) -> Path | None:
    """The PEFT folder that `path` is or, as a run's or a checkpoint's folder, holds; None where
    there is none."""
    places = (path, path / ADAPTER)
    return next((place for place in places if os.path.exists(place / _PEFT)), None)


def why_no_model(path: Path) -> str | None:
    """What to give in place of `path`, in whose folder there is no model, where it has a result."""
    if os.path.isdir(path / MODEL):
        return f"is a run of all weights: its result is a model: give --model {path / MODEL}"
    if adapter_folder(path):
        return f"holds an adapter and no model: give --adapter {path}, which knows its base"
    return None


def why_no_adapter(path: Path) -> str:
    """What the existing `path` is, in which there is no adapter, and what to give in its place."""
    if said := why_no_model(path):
        return said
    if os.path.exists(path / RECORD):
        return (
            f"is a run that has written no adapter yet: give one of its {path / CHECKPOINTS}/step-N"
        )
    held = sorted((p for p in path.glob("*") if adapter_folder(p)), key=lambda p: p.stat().st_mtime)
    hint = f"; did you mean {held[-1]}?" if held else ""
    return f"is not a PEFT folder: it holds no {_PEFT}{hint}"


def option_of(word: str) -> tuple[str, str] | None:
    """The option by which commands take the run, or the adapter, whose folder `word` is, and what
    to give to it; None where `word` is neither."""
    path = Path(word)
    is_run = os.path.exists(path / RECORD)
    if is_run and os.path.isdir(path / MODEL):
        return "model", str(path / MODEL)
    return ("adapter", word) if is_run or adapter_folder(path) else None


def run_of(path: Path) -> Path | None:
    """The run that `path` is, or that the adapter or checkpoint at `path` is of; None where it is
    of none."""
    inside = (path, *path.absolute().parents[:3])
    return next((folder for folder in inside if os.path.exists(folder / RECORD)), None)
