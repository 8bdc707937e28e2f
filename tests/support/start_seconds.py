"""Where the seconds of a run go: `start_seconds.py` and the options of train, under a launcher or
none; docs/benchmarks/start.md has what it printed.

Each part is timed by what it takes of the clock and of the CPUs, all threads of this process; the
former of a busy machine says little. START may hold the time at which the command was given, by
`date +%s.%N`: a launcher's own seconds are then in the first line.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BEGUN = float(os.environ.get("START", time.time()))


def line(what: str, wall: float, cpu: float) -> None:
    since = time.time() - BEGUN
    print(f"{what:34} {wall:6.2f} s  CPU {cpu:6.2f} s  at {since:6.2f} s", file=sys.stderr)


def timed(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            line(what, time.perf_counter() - wall, time.process_time() - cpu)

    return around


def importing(module: str) -> Any:
    import importlib

    return timed(importlib.import_module, f"import {module}")(module)


def main() -> None:
    line("the launcher, and Python", time.time() - BEGUN, time.process_time())
    importing("llama.settings.options")
    importing("torch")
    importing("llama.engine")
    loop = importing("llama.train.loop")
    inputs, engine = (
        sys.modules[f"llama.{name}"] for name in ("train.start.inputs", "assembly.engine")
    )
    for owner, name, what in [
        (loop, "start_processes", "ranks meet"),
        (inputs, "open_model", "  the model's header"),
        (inputs, "find_tokenizer", "  its tokenizer"),
        (loop, "read_inputs", "model, tokenizer and rows read"),
        (loop, "require_fit", "the plan: does it fit"),
        (loop, "Resumer", "hashes, the run's folder"),
        (loop, "build_engine", "weights loaded, DeepSpeed's engine"),
        (engine, "build_model", "  the weights"),
        (engine, "Engine", "  DeepSpeed's engine"),
        (loop.Run, "_write_record", "run.json"),
        (loop.Run, "_evaluate", "evaluation of held-out rows"),
        (loop.samples.Comparison, "both", "answers, before and after"),
        (loop.Run, "_finish", "the end: answers, adapter, report"),
    ]:
        setattr(owner, name, timed(getattr(owner, name), what))
    of_steps = sys.modules["llama.engine.engine"].Engine
    of_steps.step = timed(of_steps.step, "a step")
    from llama.commands.start import program

    program("train", "start_seconds.py")


if __name__ == "__main__":
    main()
