"""A process ends with the status it earned, whatever threads of others are at.

What is closed here aborted three of 96 ranks of `launcher/verify.py` on a busy machine, each after
its verdict: a thread of gloo's asked for the interpreter while it was taken down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT

PROGRAM = """
import atexit, sys, threading, time
from llama.launch.program import run_program

class Last:
    def __del__(self, write=sys.stderr.write):
        write("taken down")

last = Last()

def late():
    time.sleep(0.3)
    print("the thread")

def main(body):
    atexit.register(print, "the handler")
    threading.Thread(target=late).start()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("begun")
    return eval(body)

run_program(main, sys.argv[1])
"""


def ended(body: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, body]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("None", 0, ""),
        ("7", 7, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(143)", 143, ""),
        ("sys.exit('why')", 1, "why"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_all_but_the_taking_down_is_as_python_does(body: str, status: int, said: str) -> None:
    done = ended(body)
    assert done.returncode == status
    assert done.stdout.splitlines() == ["begun", "the thread", "the handler"]
    assert "taken down" not in done.stderr
    assert said in done.stderr if said else not done.stderr


def test_output_that_nobody_reads_is_no_success() -> None:
    command = [sys.executable, "-c", PROGRAM, "None"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 1


@pytest.mark.parametrize(
    "launcher", sorted((ROOT / "launcher").glob("*.py")), ids=lambda path: path.stem
)
def test_every_launcher_ends_so(launcher: Path) -> None:
    assert "run_program(run_command, main, " in launcher.read_text()
