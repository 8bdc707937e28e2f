"""Trackio: a database in a local folder (TRACKIO_DIR), and a page that `trackio show` serves.

The one importer of trackio.
"""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from llama.metrics.sinks.sink import PROJECT, Sink, Status, Watched
from llama.notes import LOG
from llama.pages.sample import Sample


class TrackioSink(Sink):
    """A run of TRACKIO_PROJECT, or of `PROJECT`. Nothing leaves this machine, unless
    TRACKIO_SERVER_URL or TRACKIO_SPACE_ID says where to."""

    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        _have_it_print_to_the_log()
        self._trackio = trackio
        self._project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        # it goes on by name, and runs in other folders may have this folder's
        name = run.ids.get("trackio") or f"{run.name}-{uuid.uuid4().hex[:4]}"
        self._run = trackio.init(
            project=self._project,
            name=name,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        run.ids.keep("trackio", name)
        self._last: dict[str, int] = {}
        for line in SQLiteStorage.get_logs(self._project, name, run_id=self._run.id):
            for key in line:
                self._last[key] = max(self._last.get(key, 0), line["step"])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """It would draw two points where a step is told twice."""
        new = {key: value for key, value in values.items() if step > self._last.get(key, -1)}
        if new:
            self._run.log(new, step=step)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        if step > self._last.get(name, -1):
            self._run.log({name: self._trackio.Histogram(values.tolist())}, step=step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        rows: list[Any] = [asdict(sample) for sample in samples]
        self._run.log({"samples": self._trackio.Table(data=rows)}, step=step)

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        rows: list[Any] = [{"name": name, "value": str(value)} for name, value in summary.items()]
        self._run.log({"summary": self._trackio.Table(data=rows)}, step=summary.get("steps"))
        self._run.finish()

    @property
    def how_to_look(self) -> str:
        return shlex.join(["trackio", "show", "--project", self._project])


def _have_it_print_to_the_log() -> None:
    """Standard output is the program's own: its last line may be read by another."""
    for name, module in list(sys.modules.items()):
        if name == "trackio" or name.startswith("trackio."):
            module.__dict__["print"] = lambda *words, **_: LOG.write(" ".join(map(str, words)))
