"""Runs of `train` started in no time: forked from a process that has imported everything.

A start costs seconds of imports, and a fault matrix needs hundreds of starts. The parent imports
once, joins no process group and starts no run; each rank of each run is a fork of it, in a process
group of its own, with its output in a file.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from llama.settings import TrainOptions
from llama.settings.options import run_command
from llama.train.loop import train
from tests.support.ports import free_port

for late in ("deepspeed.runtime.zero.muon.original_muon", "torch.utils.tensorboard"):
    importlib.import_module(late)  # what a run would import only now and then
torch.set_num_threads(1)

Spoil = Callable[[int], None]
"""Called in each rank, with its number, before it trains: what is to go wrong there."""


@dataclass
class Rank:
    """One forked rank."""

    pid: int
    log: Path
    status: int | None = None
    """Exit status as a shell gives it: 128 + the signal that killed it. None while it runs."""

    def poll(self) -> int | None:
        if self.status is None:
            pid, waited = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(waited)
                self.status = code if code >= 0 else 128 - code
        return self.status

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """So far; the child makes the file when it gets to run."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Run:
    """The first `ranks` ranks of `of` (all, where it is not given) of `train.py ARGV`. A context:
    none of them is left behind."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        ranks: int = 1,
        spoil: Spoil | None = None,
        of: int | None = None,
        port: int | None = None,
    ) -> None:
        self.started = time.monotonic()
        place = {"WORLD_SIZE": str(of or ranks), "MASTER_PORT": str(port or free_port())}
        place["LOCAL_WORLD_SIZE"] = str(ranks)
        sys.stdout.flush()  # or every fork would write what waits there once more
        self.ranks = [
            _fork(list(argv), log.with_name(f"{log.name}.{rank}"), rank, place, spoil)
            for rank in range(ranks)
        ]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.send(signal.SIGKILL)
        self.wait(30)

    def wait(self, seconds: float) -> list[int | None]:
        """The statuses of the ranks once all have ended, or `seconds` have passed."""
        self.until(lambda: False, seconds)
        return [rank.poll() for rank in self.ranks]

    def until(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Whether it happened before the ranks ended and `seconds` had passed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if happened():
                return True
            if all(rank.poll() is not None for rank in self.ranks):
                return happened()
            time.sleep(0.02)
        return False

    @property
    def said(self) -> str:
        return "".join(f"[rank {i}]\n{rank.said}" for i, rank in enumerate(self.ranks))


def _fork(
    argv: list[str], log: Path, rank: int, place: dict[str, str], spoil: Spoil | None
) -> Rank:
    log.touch()
    pid = os.fork()
    if pid:
        return Rank(pid, log)
    status = 70
    try:
        os.setpgid(0, 0)
        # tqdm's own is shared by all forks: one that is killed holding it would stop all after it.
        tqdm.set_lock(threading.RLock())
        # A fork makes torch's pool of threads anew when it is first asked for. Two threads that ask
        # at once can meet none ("Invalid thread pool!"): so it is asked for while there is one.
        torch.set_num_threads(torch.get_num_threads())
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(own | place)
        faulthandler.register(signal.SIGUSR1)  # so that one that does not end says where it is
        if spoil is not None:
            spoil(rank)
        status = run_command(train, TrainOptions, "train.py", "", argv)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
