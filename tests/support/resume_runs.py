"""Several runs of `train` in one process, or in one set of ranks: `resume_runs.py PLAN.json`, where
the plan is a list of `{"argv": [...], "stop_at": step or null, "full_at": step or null,
"stop_in_evaluation_at": step or null}`, counted from where the run starts. At the first step
of each it says how many hooks watch gradients."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

from llama.engine import Engine
from llama.errors import TrainingError
from llama.launch.program import run_program
from llama.launch.stopping import Ends
from llama.settings import TrainOptions
from llama.settings.options import parse
from llama.train import loop
from llama.train.loop import train

STOPPED = 143


class After(Ends):
    """At the end of step `stop_at` the run is asked to stop, as by a SIGTERM; at that of `full_at`
    the kernel allows no file of more than `limit` bytes, as on a disk that is full."""

    run: ClassVar[dict[str, Any]]
    engine: ClassVar[Engine]
    steps = 0

    def __enter__(self) -> Ends:
        self.before = self.engine.steps
        return super().__enter__()

    @property
    def wish(self) -> int:
        steps = self.engine.steps - self.before
        if steps == self.steps:  # an evaluation asks too, between two steps
            if steps == self.run.get("stop_in_evaluation_at"):
                self._wish = 1
            return super().wish
        self.steps = steps
        if self.steps == 1:
            hooks = sum(len(p._backward_hooks or ()) for p in self.engine.trainable.values())
            print(f"hooks on gradients: {hooks}", file=sys.stderr, flush=True)
        if self.steps == self.run.get("full_at"):
            for thread in threading.enumerate():
                if thread.name == "saving":  # the save before is not the one that fails
                    thread.join()
            limit = self.run.get("limit", 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if self.steps == self.run.get("stop_at"):
            self._wish = 1
        return super().wish


def go(run: dict[str, Any]) -> None:
    options = parse(TrainOptions, run["argv"], "train.py", "")
    stop_at, full_at = run.get("stop_at"), run.get("full_at")
    After.run = run
    try:
        status = train(options)
    except TrainingError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert full_at, run
        print(f"rank {os.environ['RANK']} reports: {error}", file=sys.stderr, flush=True)
        return
    stops = stop_at or run.get("stop_in_evaluation_at") is not None
    assert not full_at and status == (STOPPED if stops else 0), (run, status)


def main(path: Path) -> None:
    stop_processes = loop.stop_processes
    build_engine = loop.build_engine

    def built(*args: Any) -> Engine:
        After.engine = build_engine(*args)
        return After.engine

    loop.build_engine = built
    loop.Ends = After
    loop.stop_processes = lambda: None  # DeepSpeed keeps groups of its own from run to run
    draw_report = loop.draw_report
    for run in json.loads(path.read_text()):
        loop.draw_report = draw_report if run["page"] else lambda *_: None
        go(run)
    stop_processes()


if __name__ == "__main__":
    run_program(main, Path(sys.argv[1]))
