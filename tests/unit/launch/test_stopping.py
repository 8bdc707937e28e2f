"""Signals, hangs and a launcher's death, in small processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from llama.files import life
from llama.launch.parent import is_launcher
from llama.launch.stopping import _standing
from llama.parallel.mesh import SINGLE, Mesh
from tests.support.living import lives
from tests.support.model_files import ROOT

RANK = ROOT / "tests" / "support" / "ending_rank.py"


class Rank:
    """A started process and its folder."""

    def __init__(
        self,
        folder: Path,
        *argv: str,
        prefix: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, *prefix, str(RANK), str(folder), *argv],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (variables or {}),
            stderr=(folder / "stderr").open("w"),
        )

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline and self.process.poll() is None, self.said
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda: len(self.lines("steps")) >= step)

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Rank]]:
    ranks: list[Rank] = []

    def started(*argv: str, **keywords: Any) -> Rank:
        ranks.append(Rank(tmp_path, *argv, **keywords))
        return ranks[-1]

    yield started
    for rank in ranks:
        rank.process.kill()
        rank.process.wait()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_saves_once(start: Callable[..., Rank], number: int, status: int) -> None:
    rank = start("600")
    rank.until_step(3)
    rank.process.send_signal(number)
    assert rank.process.wait(30) == status
    assert rank.lines("saved") == [rank.lines("steps")[-1]]
    assert "stopping after this step" in rank.said


def test_a_second_signal_stops_at_once(start: Callable[..., Rank]) -> None:
    """Inside a step that never ends, where no handler of Python's would run either."""
    rank = start("600", "4")
    rank.until_step(4)
    rank.process.send_signal(signal.SIGTERM)
    rank.until(lambda: "a second one stops at once" in rank.said)
    time.sleep(1.2)
    rank.process.send_signal(signal.SIGTERM)
    assert rank.process.wait(10) == 143
    assert rank.lines("saved") == [] and len(rank.lines("steps")) == 4


def test_a_signal_that_comes_twice_is_one_request(start: Callable[..., Rank]) -> None:
    """Ctrl-C under `deepspeed`: the terminal's SIGINT, and `launch.py` passing on a SIGTERM."""
    rank = start("600")
    rank.until_step(3)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        rank.process.send_signal(number)  # Stopped, it has both at once, however slow we are.
    assert rank.process.wait(30) == 130
    assert len(rank.lines("saved")) == 1


def test_a_hung_rank_says_where_and_ends(start: Callable[..., Rank]) -> None:
    rank = start("2", "4")
    assert rank.process.wait(60) == 1
    assert len(rank.lines("steps")) == 4 and rank.lines("saved") == []
    first, *stacks = rank.lines("hang-rank-0.txt")
    assert first.startswith("rank 0 has done nothing for ") and ", after step 3, in main (" in first
    assert any("ending_rank.py" in line and "in main" in line for line in stacks)
    assert f"rank 0: error: {first.removeprefix('rank 0 ')}" in rank.said


def test_a_rank_that_hangs_at_its_folder_ends_too(
    start: Callable[..., Rank], tmp_path: Path
) -> None:
    """As at storage that does not answer: a pipe that nobody reads."""
    os.mkfifo(tmp_path / "hang-rank-0.txt")
    rank = start("2", "4")
    assert rank.process.wait(60) == 1
    assert "rank 0: error: has done nothing for " in rank.said


LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""


def test_a_rank_ends_with_its_launcher(start: Callable[..., Rank], tmp_path: Path) -> None:
    """A stand-in with torchrun's name, killed where it can pass nothing on."""
    launcher = tmp_path / "torchrun"
    launcher.write_text(LAUNCHER)
    rank = start("600", prefix=(str(launcher),))
    rank.until_step(3)
    (child,) = psutil.Process(rank.process.pid).children()
    rank.process.kill()  # and not waited for: a zombie counts as ended
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()
    assert "rank 0: its launcher has ended: saving after this step, then ending too" in rank.said
    assert len(rank.lines("saved")) == 1


RANK_OF = {"RANK": "0", "WORLD_SIZE": "1"}
TORCHRUN = {**RANK_OF, "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
DEEPSPEED = {**RANK_OF, "CROSS_RANK": "0", "CROSS_SIZE": "1"}


@pytest.mark.parametrize("variables", [TORCHRUN, DEEPSPEED])
def test_a_rank_whose_launcher_went_before_it_looked(
    variables: dict[str, str], tmp_path: Path
) -> None:
    """Started in a session of its own, by a process that ends at once."""
    command = 'setsid "$@" $$ 2>stderr >pid & '
    subprocess.run(
        ["bash", "-c", command, "", sys.executable, "-c", ORPHAN, str(RANK), str(tmp_path), "600"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        check=True,
    )
    deadline = time.monotonic() + 60
    said = tmp_path / "stderr"
    while not said.exists() or "its launcher has ended" not in said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while lives(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()


ORPHAN = """
import os, runpy, sys, time
while os.getppid() == int(sys.argv[-1]):
    time.sleep(0.01)
print(os.getpid(), flush=True)
sys.argv = sys.argv[1:-1]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("variables", [TORCHRUN, DEEPSPEED, {"TORCHELASTIC_RUN_ID": "none"}])
def test_variables_alone_are_no_launcher(
    start: Callable[..., Rank], variables: dict[str, str]
) -> None:
    """A shell, a notebook or a test that kept them lives: nobody left this rank behind."""
    rank = start("600", variables=variables)
    rank.until_step(60)  # a launcher is looked at every second
    assert rank.said == ""


def test_a_rank_without_a_launcher_is_nobody_s(start: Callable[..., Rank], tmp_path: Path) -> None:
    """A shell or script of the user's may end and leave the run behind."""
    script = tmp_path / "my_job.py"
    script.write_text(LAUNCHER)
    rank = start("600", prefix=(str(script),))
    rank.until_step(3)
    (child,) = psutil.Process(rank.process.pid).children()
    rank.process.kill()
    seen = len(rank.lines("steps"))
    time.sleep(3)
    assert child.is_running() and len(rank.lines("steps")) > seen
    child.kill()


@pytest.mark.parametrize(
    "command",
    [
        "/v/bin/python /v/bin/torchrun --nproc_per_node 2 train.py",
        "/v/bin/python3.11 -u -m torch.distributed.run --nproc_per_node 2 train.py",
        "python -m torch.distributed.launch train.py",
        "/v/bin/python /v/bin/deepspeed --num_gpus 2 train.py",
        "/v/bin/python -u -m deepspeed.launcher.launch --world_info=e30= train.py",
        "python /v/lib/torch/distributed/run.py train.py",
        "python -X dev /v/bin/torchrun train.py",
        "/v/bin/python /v/bin/accelerate launch --num_processes 2 train.py",
        "python -m accelerate.commands.launch train.py",
    ],
)
def test_launchers_are_known(command: str) -> None:
    assert is_launcher(command.split())


@pytest.mark.parametrize(
    "command",
    [
        ["bash", "-c", "torchrun train.py"],
        ["tmux", "new-session", "torchrun", "train.py"],
        ["timeout", "60", "torchrun", "train.py"],
        ["python", "launcher/train.py", "--deepspeed", "torchrun"],
        ["python", "-m", "pytest", "torch.distributed.run"],
        ["python", "-c", "import os", "deepspeed"],
        ["python"],
        [],
    ],
)
def test_what_is_no_launcher(command: list[str]) -> None:
    assert not is_launcher(command)


def test_a_rank_that_waits_for_a_slow_one_is_not_taken_for_the_one_that_hangs() -> None:
    came, goes_on = threading.Event(), threading.Event()

    def barrier(_options: object) -> mock.Mock:
        came.set()
        return mock.Mock(wait=goes_on.wait)

    mesh = Mesh(0, 2, SINGLE, 0, 2, None)  # type: ignore[arg-type]
    with mock.patch("llama.parallel.mesh.dist") as dist:
        dist.group.WORLD.barrier = barrier
        waiting = threading.Thread(target=mesh.wait)
        waiting.start()
        try:
            assert came.wait(10)
            assert _standing(None)[1]
            life.was_stopped(-1000)
            assert life.silence() == 0, "the other rank is the one to say that it hangs"
        finally:
            goes_on.set()
            waiting.join()
    assert not _standing(None)[1]
    assert life.silence() < 1000, "the wait was none of its own silence"
