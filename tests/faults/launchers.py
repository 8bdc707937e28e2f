"""Faults under the launchers: signals to ranks and launchers, launchers killed, restarts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

from tests.faults.kills import BOUND
from tests.faults.setting import (
    LONG,
    LONG_ALONE,
    Case,
    Shape,
    last_step,
    outcome,
    resumed_from,
    saved_steps,
)
from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import Launcher

DOCUMENT = ROOT / "docs" / "faults.md"

To = Literal["rank", "launcher", "inner", "group"]


class Launched:
    """A launcher, with a log and a session of its own, and the processes below it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | own,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    def below(self) -> list[psutil.Process]:
        """Every process that was ever seen below the launcher and is there still."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(child.pid, child)
        return [process for process in self._seen.values() if _is_there(process)]

    def ranks(self) -> list[psutil.Process]:
        """Those that train, in the order of their start."""
        found = [p for p in self.below() if "launcher/train.py" in _words(p)[1:3]]
        return sorted(found, key=lambda p: p.pid)

    def inner(self) -> psutil.Process:
        (found,) = [p for p in self.below() if "deepspeed.launcher.launch" in _words(p)]
        return found

    def until(self, happened: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"not in {seconds:.0f} s\n{self.said}"
            assert self.process.poll() is None, f"it has ended\n{self.said}"
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> int:
        """Its status, as a shell gives it, once none of its processes is left."""
        self.below()
        deadline = time.monotonic() + seconds
        while self.process.poll() is None or self.below():
            assert time.monotonic() < deadline, f"{self.below()} are left\n{self.said}"
            time.sleep(0.05)
        status = self.process.returncode
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        for process in self.below():
            process.kill()
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def started(case: Case, launcher: Launcher, shape: Shape, *more: str) -> Iterator[Launched]:
    binaries, port = Path(sys.executable).parent, str(free_port())
    of_launcher = [word for word in more if word.startswith("--max_restarts")]
    start = {
        "python": [sys.executable],
        "torchrun": [
            *(str(binaries / "torchrun"), "--master_port", port, *of_launcher),
            *("--nproc_per_node", str(shape.ranks), "--monitor_interval", "0.2"),
        ],
        "deepspeed": [
            *(str(binaries / "deepspeed"), "--master_port", port),
            *("--num_gpus", str(shape.ranks)),
        ],
    }[launcher]
    of_train = [word for word in more if word not in of_launcher]
    argv, log = case.command(shape, *of_train)
    launched = Launched([*start, "launcher/train.py", *argv], log)
    try:
        yield launched
    finally:
        launched.kill()


def in_training(run: Launched, case: Case) -> int:
    """Wait until it has logged some steps; gives the number that was waited for."""
    step = case.draw.randint(2, 20)
    run.until(lambda: last_step(case.out) >= step)
    run.below()  # known by then, though the launcher may end first
    return step


RARELY = ("--save_every", "1000")
"""So that a checkpoint in mid-run can only be the one of its end."""


def stopped(case: Case, launcher: Launcher, to: To, number: int, statuses: list[int]) -> int:
    """A signal that asks: every rank ends with one checkpoint, of the last step it took."""
    shape = LONG_ALONE if launcher == "python" else LONG
    with started(case, launcher, shape, *RARELY) as run:
        step = in_training(run, case)
        if to == "group":
            os.killpg(run.process.pid, number)
        else:
            _target(run, to, case).send_signal(number)
        found = run.end(BOUND)
        assert found in statuses, f"{found}\n{run.said}"
        assert "stopped after step" in run.said, run.said
    last = last_step(case.out)
    assert step <= last < shape.steps
    assert saved_steps(case.out) == [last], f"{saved_steps(case.out)} and not {last}"
    case.finish(shape)
    return 0


def killed(case: Case, launcher: Launcher, to: To, statuses: list[int]) -> int:
    """SIGKILL: no process outlives it for long. A launcher's death lets its ranks save; a rank's
    does not."""
    with started(case, launcher, LONG, *(RARELY if to != "rank" else ())) as run:
        in_training(run, case)
        _target(run, to, case).kill()
        found = run.end(BOUND)
        assert found in statuses, f"{found}\n{run.said}"
    if to != "rank":
        saved, last = saved_steps(case.out), last_step(case.out)
        assert saved == [last], f"{saved} and not {last}"
    lost = case.lost()
    case.finish(LONG)
    return lost


def frozen(case: Case, launcher: Launcher) -> int:
    """SIGSTOP of a rank: the other one's watchdog ends the job, and the launcher kills it."""
    with started(case, launcher, LONG, "--hang_timeout", "5") as run:
        in_training(run, case)
        _target(run, "rank", case).suspend()
        found = run.end(90)
        assert found not in (0, 2), f"{found}\n{run.said}"
        assert "has waited for another rank" in run.said, run.said
    lost = case.lost()
    case.finish(LONG)
    return lost


def restarted(case: Case) -> int:
    """`torchrun --max_restarts`, and a rank killed: it starts both anew and ends as if nothing had
    happened."""
    expected = case.setting.expected(LONG)
    with started(case, "torchrun", LONG, "--max_restarts=2") as run:
        in_training(run, case)
        _target(run, "rank", case).kill()
        before = last_step(case.out)
        assert run.end(240) == 0, run.said
        assert "going on from" in run.said, run.said
    assert outcome(case.out, LONG) == expected
    return before - resumed_from(case.out)


def loop(case: Case) -> int:
    """The loop of docs/faults.md around `deepspeed`, and a rank or an inner launcher killed."""
    expected = case.setting.expected(LONG)
    (text,) = re.findall(r"```bash\n(for attempt .*?)```", DOCUMENT.read_text(), re.DOTALL)
    command = f"{Path(sys.executable).parent / 'deepspeed'} --master_port {free_port()}"
    argv, log = case.command(LONG)
    text, commands = re.subn(
        "deepspeed .*", f"{command} --num_gpus 2 launcher/train.py {' '.join(argv)}", text
    )
    assert commands == 1
    run = Launched(["bash", "-c", text.replace("runs/mine", str(case.out))], log)
    try:
        in_training(run, case)
        to: To = "inner" if case.number % 2 else "rank"
        _target(run, to, case).kill()
        if to == "inner":  # its ranks go on for a moment, and save
            run.until(lambda: len(run.ranks()) == 0)
        before = last_step(case.out)
        assert run.end(300) == 0, run.said
        assert "going on from" in run.said, run.said
    finally:
        run.kill()
    assert outcome(case.out, LONG) == expected
    return before - resumed_from(case.out)


def _target(run: Launched, to: To, case: Case) -> psutil.Process:
    if to == "rank" and (ranks := run.ranks()):
        return case.draw.choice(ranks)
    return run.inner() if to == "inner" else psutil.Process(run.process.pid)
