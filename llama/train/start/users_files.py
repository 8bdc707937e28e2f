"""What of the user's own lies where a run would write. The run would replace or remove it, so it is
refused, before it has changed anything."""

from __future__ import annotations

import os
from pathlib import Path

from llama.errors import raise_if
from llama.files.run_folder import (
    BEST,
    METRICS,
    NORMS,
    REPORT,
    REPORTED_TO,
    SAMPLES,
    SUMMARY,
    adapter_folder,
)
from llama.methods.method import Method
from llama.settings import TrainOptions
from llama.weights.open_model import local_path

_AFTER_ITS_RECORD = (SUMMARY, METRICS, NORMS, SAMPLES, REPORT, REPORTED_TO, BEST)
"""What a run writes once it has written run.json, beside its results. Before that it writes its
lock and its logs alone: a folder with no more in it may be what a killed start has left."""


def require_none(folder: Path, options: TrainOptions, method: Method, holds_run: bool) -> None:
    """Raise `UserError` where a run with `options` would write in `folder` over what it is given
    to read, or, unless there is a run whose files they are, over anything else."""
    problems = _given(folder, options, method)
    if not problems and not holds_run:
        problems = [
            f"--output_dir: {folder} holds {name}, which is of no run: give an empty folder"
            for name in (method.RESULT, method.LAST, *_AFTER_ITS_RECORD)
            if _holds_something(folder / name)
        ]
    raise_if(problems)


def _given(folder: Path, options: TrainOptions, method: Method) -> list[str]:
    """A problem for each option that names something in a folder which the run replaces."""
    given = {
        "model": local_path(options.model),
        "init_adapter": options.init_adapter and adapter_folder(options.init_adapter),
        "tokenizer": options.tokenizer,
    }
    written = {name: (folder / name).resolve() for name in (method.RESULT, method.LAST)}
    return [
        f"--output_dir: the run would write {folder / name}, where --{option} {path} is: give "
        "another folder"
        for option, path in given.items()
        if path is not None
        for name, place in written.items()
        if place in (found := path.resolve(), *found.parents)
    ]


def _holds_something(path: Path) -> bool:
    """Whether `path` is there and more than an empty file or folder, of which nothing is lost. A
    link counts, wherever it leads."""
    if path.is_symlink() or not os.path.lexists(path):
        return path.is_symlink()
    return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
