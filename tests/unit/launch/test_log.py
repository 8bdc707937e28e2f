"""The log of a run: what goes there, and that no line is lost."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from llama.launch.log import libraries_kept, log_file
from llama.notes import LOG, Log, note

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def lines_of(path: Path) -> list[str]:
    """The lines without their times; every one must have its own."""
    found = path.read_text().splitlines()
    assert all(STAMP.match(line) for line in found), found
    return [STAMP.sub("", line, count=1) for line in found]


def test_lines_wait_for_their_file_and_go_behind_what_is_there(tmp_path: Path) -> None:
    for number in (1, 2):
        log = Log()
        log.write(f"early {number}\nand more")
        log.begin(tmp_path / "log.txt")
        log.write(f"late {number}")
        log.end()
    assert lines_of(tmp_path / "log.txt") == [
        line for n in (1, 2) for line in (f"early {n}", "and more", f"late {n}")
    ]


def test_a_log_without_a_line_makes_no_file(tmp_path: Path) -> None:
    log = Log()
    log.begin(tmp_path / "log.txt")
    log.end()
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("path", ["/dev/full", "/proc/nowhere/log.txt"])
def test_a_log_that_cannot_be_written_is_given_up(path: str) -> None:
    log = Log()
    log.write("waits")
    log.begin(Path(path))
    log.write("one")
    log.write("two")
    assert log.path is None


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    """Nor half of one: each is with the system before the next thing is done."""
    script = (
        "import os, signal, sys; from pathlib import Path; from llama.notes import LOG, note;"
        "LOG.begin(Path(sys.argv[1])); [note(f'line {n}') for n in range(500)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", script, path], stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    expected = [f"line {n}" for n in range(500)]
    assert lines_of(path) == expected and done.stderr.splitlines() == expected


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from llama.notes import LOG;"
        "LOG.begin(Path(sys.argv[1])); [LOG.write(sys.argv[2] * 3000) for _ in range(200)]"
    )
    path = tmp_path / "log.txt"
    both = [subprocess.Popen([sys.executable, "-c", script, path, word]) for word in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(lines_of(path)) == ["a" * 3000] * 200 + ["b" * 3000] * 200


@pytest.fixture
def log(tmp_path: Path):
    LOG.begin(tmp_path / "log.txt")
    yield tmp_path / "log.txt"
    LOG.end()


def test_what_libraries_say_is_in_the_log_alone(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = logging.getLogger("a.library")
    own.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    own.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with libraries_kept():
            warnings.warn("soon gone", FutureWarning, stacklevel=1)
            own.warning("slow %s", "path")
            logging.getLogger("another").error("the device is lost")
            note("our own")
    assert own.handlers == [handler], "it is as it was"
    said = lines_of(log)
    assert said[0].endswith("FutureWarning: soon gone")
    assert said[1:] == [
        "a.library: WARNING: slow path",
        "another: ERROR: the device is lost",
        "our own",
    ]
    assert capsys.readouterr().err == "another: ERROR: the device is lost\nour own\n"


def test_other_ranks_have_logs_of_their_own(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    note("of rank 1")
    assert capsys.readouterr().err == "" and lines_of(log) == ["of rank 1"]
    names = [log_file(Path("out"), rank).name for rank in (0, 1)]
    assert names == ["log.txt", "log-rank-1.txt"]


@pytest.mark.parametrize(
    ("terminal", "expected"), [("xterm", "\r\x1b[Kmore\n"), ("dumb", "more\n")]
)
def test_a_line_takes_the_place_of_a_bar(
    terminal: str, expected: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", terminal)
    note("more")
    assert stream.getvalue() == expected and lines_of(log) == ["more"]


FAILING = """
import sys; from pathlib import Path
from llama.launch.program import run_program
from llama.notes import LOG
def main():
    LOG.begin(Path(sys.argv[1]))
    raise ZeroDivisionError("of a library")
run_program(main)
"""


def test_a_traceback_is_on_the_terminal_and_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    done = subprocess.run(
        [sys.executable, "-c", FAILING, path], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert done.returncode == 1
    where, *report = done.stderr.splitlines()
    assert where == f"log: {path}"
    assert report[0].startswith("Traceback") and report[-1] == "ZeroDivisionError: of a library"
    assert lines_of(path) == report
