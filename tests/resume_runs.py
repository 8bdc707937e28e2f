"""Several runs of `train` in one process, or in one set of ranks: `python -m tests.resume_runs
PLAN.json`, where the plan is a list of `{"argv": [...], "stop_at": step or null}`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llama.config import TrainOptions
from llama.options import parse
from llama.train import engine
from llama.train.loop import train

STOPPED = 143


class StopAt:
    """As a SIGTERM in the step of that number."""

    def __init__(self, step: int | None) -> None:
        self.status = 0
        self._left = step

    def asked(self) -> bool:
        if self._left is not None:
            self._left -= 1
            self.status = STOPPED if self._left == 0 else 0
        return self.status != 0


def main(path: Path) -> None:
    stop_processes = engine.stop_processes
    engine.stop_processes = lambda: None  # DeepSpeed keeps groups of its own from run to run
    for run in json.loads(path.read_text()):
        options = parse(TrainOptions, run["argv"], "train.py", "")
        stop = StopAt(run["stop_at"])
        status = train(options, stop)
        assert status == (STOPPED if run["stop_at"] else 0), (run, status)
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
