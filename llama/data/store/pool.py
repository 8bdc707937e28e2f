"""Processes that make parts of data, at most as many as this one may have CPUs."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock

from llama.data.store.making import Made, Making, Part
from llama.data.store.wire import Answer, receive, send
from llama.data.stream import UnsoundError
from llama.errors import TrainingError
from llama.launch.cgroup import cgroup_cpus
from llama.launch.ranks import ranks_of_host

AHEAD = 2
"""Parts for each process that are under way or waiting: what bounds memory."""
_WORKER = "llama.data.store.worker"


def cpus(alone: bool) -> int:
    """CPUs that this process may use: all that the system and its container let it, where the other
    ranks of this host wait for it (`alone`), else its share of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    granted = cgroup_cpus()
    if granted is not None:
        allowed = min(allowed or 1, math.ceil(granted))
    ranks = 1 if alone else ranks_of_host(os.environ) or 1
    return max(1, (allowed or 1) // ranks)


def make_in(every: Iterable[Part], making: Making, count: int) -> Iterator[Made]:
    """What comes of each part, in their order, made by up to `count` processes, each started when a
    part waits for one. Raises UnsoundError, and TrainingError where a process was ended or failed.
    """
    idle: SimpleQueue[_Worker] = SimpleQueue()
    workers: list[_Worker] = []
    starting = Lock()

    def free() -> _Worker:
        with contextlib.suppress(Empty):
            return idle.get_nowait()
        with starting:
            if len(workers) < count:
                workers.append(_Worker(making))
                return workers[-1]
        return idle.get()

    def make(part: Part) -> Made:
        worker = free()
        try:
            return worker.make(part)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(count) as threads:
        under_way: deque[Future[Made]] = deque()
        try:
            for part in every:
                under_way.append(threads.submit(make, part))
                if len(under_way) > AHEAD * count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
            for worker in workers:
                worker.end()


class _Worker:
    """One process. It ends with this one, however this one ends: its input is then at an end."""

    def __init__(self, making: Making) -> None:
        package = str(Path(__file__).resolve().parents[3])
        paths = filter(None, [package, os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._making: Making | None = making

    def make(self, part: Part) -> Made:
        assert self._process.stdin and self._process.stdout
        try:
            if self._making is not None:
                send(self._process.stdin, self._making)
                self._making = None
            send(self._process.stdin, part)
            answer: Answer = receive(self._process.stdout)
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            raise TrainingError(
                f"a process that makes tokens of {part.path} ended {how}; if it was for want of "
                "memory, give this one fewer CPUs (taskset)"
            ) from None
        if answer.unsound is not None:
            raise UnsoundError(answer.unsound)
        if answer.made is None:
            raise TrainingError(f"making tokens of {part.path} failed:\n{answer.failed}")
        return answer.made

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # what one that was killed has not read
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
