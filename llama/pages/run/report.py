"""The page of a run, or of several, made of nothing but the files in their folders."""

from __future__ import annotations

import os
from pathlib import Path

from llama.pages.page import page
from llama.pages.run import compare, sections
from llama.pages.run.files import RunFiles, check_runs, read_run


def report(folders: list[Path]) -> str:
    """An HTML file that needs no other. Raises `UserError` where one of `folders` is no run."""
    return page_of(read_runs(folders))


def read_runs(folders: list[Path]) -> list[RunFiles]:
    """The runs, labelled by their folders' names, or where two share one, by their paths. Raises
    `UserError`."""
    check_runs(folders)
    names = [_text(folder.resolve().name) for folder in folders]
    paths = [_text(str(folder)) for folder in folders]
    labels = names if len(set(names)) == len(names) else paths
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def page_of(runs: list[RunFiles]) -> str:
    """The page of what was read."""
    if len(runs) == 1:
        return page(f"Run {runs[0].label}", sections.sections(runs[0]))
    labels = ", ".join(run.label for run in runs)
    return page(f"{len(runs)} runs: {labels}", compare.sections(runs))


def _text(name: str) -> str:
    """A name as text: a folder's may hold bytes that are none."""
    return os.fsencode(name).decode(errors="replace")
