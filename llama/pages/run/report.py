"""The page of a run, or of several, made of nothing but the files in their folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llama.pages.page import page
from llama.pages.run import compare, sections
from llama.pages.run.files import RunFiles, check_runs, read_run

_HEAD = 4096
"""Bytes of a page in which it says what it is of."""


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
        return page(f"Run {runs[0].label}", sections.sections(runs[0]), _mark(runs))
    labels = ", ".join(run.label for run in runs)
    return page(f"{len(runs)} runs: {labels}", compare.sections(runs), _mark(runs))


def is_page_of(path: Path, runs: list[RunFiles]) -> bool:
    """Whether the file at `path` is the page of these runs, made earlier. Raises OSError."""
    with path.open("rb") as file:
        return f'content="{_mark(runs)}"'.encode() in file.read(_HEAD)


def _mark(runs: list[RunFiles]) -> str:
    """By what a page of these runs is known: their folders, in whatever order, as a hash, since a
    page that is handed on is to tell nobody where they lie."""
    folders = sorted(os.fsencode(run.folder.resolve()) for run in runs)
    return hashlib.sha256(b"\0".join(folders)).hexdigest()


def _text(name: str) -> str:
    """A name as text: a folder's may hold bytes that are none."""
    return os.fsencode(name).decode(errors="replace")
