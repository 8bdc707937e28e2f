"""Streams that are closed, full, gone, or know few letters end no program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT

PROGRAM = """
import contextlib, logging, os, sys, warnings
from llama.launch.program import run_program
from tqdm import tqdm

def main():
    for _ in range(3):
        print("x" * 9000, file=sys.stderr)
    with open("opened", "w") as file:
        with contextlib.suppress(OSError):
            os.write(2, b"of a library")
        file.write("kept")
    for _ in tqdm(range(3)):
        logging.error("caf\\xe9")
        warnings.warn("\\u6f22")
    for word in sys.argv[1:]:
        print(word, flush=True)
    print("last", file=sys.stderr)
    open("done", "w").close()

run_program(main)
"""


def shell(
    folder: Path, redirected: str, *words: str, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run PROGRAM in `folder` with `words`, by a shell that redirects its streams."""
    (folder / "program.py").write_text(PROGRAM)
    command = f'exec "$0" program.py "$@" {redirected}'
    encodes = ("PYTHONIOENCODING", "PYTHONUTF8")
    kept = {name: text for name, text in os.environ.items() if name not in encodes}
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *words],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirected", "words", "status"),
    [
        ("2>&-", ("a",), 0),
        ("2>/dev/full", ("a",), 0),
        ("<&- 2>&-", ("a",), 0),
        ("2> >(exec 0<&-; sleep 0.1)", ("a",), 0),
        (">&- 2>&-", (), 0),
        (">&-", (), 0),
        (">/dev/full", (), 0),
        (">&-", ("a",), 1),
        (">/dev/full", ("a",), 1),
        (">&- 2>&-", ("a",), 1),
        (">/dev/full 2>/dev/full", ("a",), 1),
        ("| true; exit ${PIPESTATUS[0]}", ("a", "b" * 99999, "c" * 99999), 1),
    ],
)
def test_the_program_comes_to_its_end(
    redirected: str, words: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    done = shell(tmp_path, redirected, *words)
    assert done.returncode == status, done
    assert (tmp_path / "done").exists()
    assert (tmp_path / "opened").read_text() == "kept"
    assert b"Traceback" not in done.stderr and b"Logging error" not in done.stderr
    lost = [line for line in done.stderr.splitlines() if line.startswith(b"error: ")]
    silent = not status or "2>" in redirected or "|" in redirected  # a reader may go: `| head`
    assert len(lost) == (0 if silent else 1), done.stderr


def test_only_what_was_lost_is_said(tmp_path: Path) -> None:
    done = shell(tmp_path, ">/dev/full", "a")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(b"error: "))
    assert line == b"error: standard output: No space left on device: output is lost"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_letters_that_a_stream_does_not_know(variables: dict[str, str], tmp_path: Path) -> None:
    done = shell(tmp_path, "", "caf\xe9 \u6f22", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"caf\\xe9 \\u6f22\n"
    assert b"caf\\xe9" in done.stderr


def test_utf8_stays_utf8(tmp_path: Path) -> None:
    done = shell(tmp_path, "", "caf\xe9", LC_ALL="C.UTF-8")
    assert done.stdout == "caf\xe9\n".encode()


def test_a_pipe_that_does_not_block_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words = ["y" * 100_000, "z" * 100_000]
    with subprocess.Popen(
        [sys.executable, "program.py", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            assert file.read().decode().split() == words
        assert process.wait(60) == 0
