"""The port that the ranks of one launcher meet at."""

from __future__ import annotations

from dataclasses import dataclass, field

import psutil
import pytest

from llama.launch import processes

UNDER_DEEPSPEED = {"CROSS_SIZE": "1", "MASTER_PORT": "29500"}


@dataclass
class Launcher:
    """What is asked of a process above the ranks."""

    pid: int
    words: list[str] = field(default_factory=list)

    def cmdline(self) -> list[str]:
        return self.words


def port(
    monkeypatch: pytest.MonkeyPatch, *words: str, pid: int = 7, **variables: str
) -> int | None:
    launch = Launcher(pid, ["python", "-m", "deepspeed.launcher.launch", "--master_port=29500"])
    above = [launch, Launcher(6, ["deepspeed", *words, "launcher/train.py"])]
    monkeypatch.setattr(processes, "launcher_processes", lambda: above)
    return processes._port_of_launcher(UNDER_DEEPSPEED | variables)


def test_every_run_of_deepspeed_on_one_host_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [port(monkeypatch, "--num_gpus", "2", pid=pid) for pid in range(7, 107)]
    assert len(set(found)) >= 98  # of 12,000 ports a hundred runs hardly share one
    assert all(found) and found[0] == port(monkeypatch, pid=7)  # the same for every rank


@pytest.mark.parametrize("words", [["--master_port", "29500"], ["--master_port=29500"]])
def test_a_port_that_was_typed_stays(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert port(monkeypatch, *words) is None
    assert port(monkeypatch, MASTER_PORT="29501") is None


def test_ranks_on_several_hosts_need_the_one_they_were_all_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert port(monkeypatch, CROSS_SIZE="2") is None
    monkeypatch.setattr(processes, "launcher_processes", lambda: [])
    assert processes._port_of_launcher({"MASTER_PORT": "29500"}) is None
    assert processes._port_of_launcher(UNDER_DEEPSPEED) is None


def test_a_launcher_that_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> list[Launcher]:
        raise psutil.AccessDenied()

    monkeypatch.setattr(processes, "launcher_processes", hidden)
    assert processes._port_of_launcher(UNDER_DEEPSPEED) is None
