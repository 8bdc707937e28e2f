"""A process ends with the status it earned, whatever threads of others are at.

What is closed here aborted three of 96 ranks of `launcher/verify.py` on a busy machine, each after
its verdict: a thread of gloo's asked for the interpreter while it was taken down."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama.commands.start import program
from llama.commands.table import COMMANDS
from llama.launch.program import loading
from tests.support.model_files import ROOT

PROGRAM = """
import atexit, signal, sys, threading, time
from llama.commands.start import program
from llama.commands.table import COMMANDS
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
    print("begun")
    threading.Thread(target=late).start()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
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


def test_a_pool_that_was_left_open_is_ended() -> None:
    """As Python does: its threads wait for work for ever, and `torch.compile` leaves one."""
    pool = "__import__('concurrent.futures').futures.ThreadPoolExecutor()"
    done = ended(f"sys.__dict__.setdefault('pool', {pool}).submit(int).result()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "the thread", "the handler"]


def test_output_that_nobody_reads_is_no_success() -> None:
    command = [sys.executable, "-c", PROGRAM, "None"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert done.returncode == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_launcher_ends_so(name: str) -> None:
    text = (ROOT / "launcher" / f"{name}.py").read_text()
    assert f'    program("{name}")' in text
    assert "run_program(lambda: run(" in inspect.getsource(program)


LOADING = """
import os, signal, sys, time
from llama.commands.start import program
from llama.commands.table import COMMANDS
from llama.launch.program import loading, run_program

def main():
    with loading():
        print("begun", flush=True)
        try:
            time.sleep(60)
        except BaseException:  # a module that catches what is raised in it
            time.sleep(60)

run_program(main)
"""


def test_ctrl_c_among_the_imports() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""


def test_after_the_imports_ctrl_c_is_raised_again() -> None:
    """Where something has begun, it is ended in order."""
    before = signal.getsignal(signal.SIGINT)
    with loading():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert ended("signal.raise_signal(signal.SIGINT)").returncode == 130
    assert ended("signal.raise_signal(signal.SIGINT)").stderr == ""


WRITING = """
import sys, time
from pathlib import Path
from llama.commands.start import run
from llama.commands.table import COMMANDS, Command
from llama.files.atomic import write_folder
from llama.launch.program import run_program

def wait(partial):
    print("begun", flush=True)
    time.sleep(60)

def write(options):
    write_folder(Path(sys.argv[2]), {"file": b""}, wait)

in_ranks = sys.argv[1] == "True"
COMMANDS["report"] = Command("", "llama.settings:ReportOptions", "__main__:write", in_ranks)
run_program(lambda: run("report", "report.py", ["RUN"]))
"""


@pytest.mark.parametrize(("in_ranks", "status"), [(False, 143), (True, -signal.SIGTERM)])
def test_sigterm_leaves_no_half_of_a_folder(in_ranks: bool, status: int, tmp_path: Path) -> None:
    """As Ctrl-C. A rank is its launcher's to end: it may wait for others where no handler runs."""
    command = [sys.executable, "-c", WRITING, str(in_ranks), str(tmp_path / "out")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == status
        assert process.stderr.read() == b""
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([".out.partial"] if in_ranks else [])


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("UNRELATED", "1", "expandable_segments:True"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64", "max_split_size_mb:64"),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:64", "None"),
    ],
)
def test_the_allocator_grows_in_place_unless_the_user_has_set_it(
    variable: str, value: str, expected: str
) -> None:
    others = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k}
    body = "print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
    done = subprocess.run(
        [sys.executable, "-c", "import os\n" + PROGRAM, body],
        cwd=ROOT,
        env=others | {variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout.splitlines()
