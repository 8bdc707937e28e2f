"""Several runs of `train` in one process, or in one set of ranks: `resume_runs.py PLAN.json`, where
the plan is a list of `{"argv": [...], "stop_at": step or null, "full_at": step or null}`, counted
from where the run starts."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from llama.config import TrainOptions
from llama.errors import TrainingError
from llama.options import parse
from llama.train import engine
from llama.train.loop import train

STOPPED = 143


class After:
    """At the end of step `stop_at` the run is asked to stop, as by a SIGTERM; at that of `full_at`
    the kernel allows no file of more than `limit` bytes, as on a disk that is full."""

    def __init__(self, stop_at: int | None, full_at: int | None, limit: int) -> None:
        self.status = 0
        self._stop_at, self._full_at, self._limit = stop_at, full_at, limit
        self._steps = 0

    def asked(self) -> bool:
        self._steps += 1
        if self._steps == self._full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, resource.RLIM_INFINITY))
        if self._steps == self._stop_at:
            self.status = STOPPED
        return self.status != 0


def go(run: dict[str, Any]) -> None:
    options = parse(TrainOptions, run["argv"], "train.py", "")
    stop_at, full_at = run.get("stop_at"), run.get("full_at")
    try:
        status = train(options, After(stop_at, full_at, run.get("limit", 0)))
    except TrainingError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert full_at, run
        print(f"rank {os.environ['RANK']} reports: {error}", file=sys.stderr, flush=True)
        return
    assert not full_at and status == (STOPPED if stop_at else 0), (run, status)


def main(path: Path) -> None:
    stop_processes = engine.stop_processes
    engine.stop_processes = lambda: None  # DeepSpeed keeps groups of its own from run to run
    for run in json.loads(path.read_text()):
        go(run)
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
