"""The commands of CONTRIBUTING.md: what writes a page writes the committed one, what runs tests
finds them, and make knows its targets. The measures that it names are those that are held."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.make import dry_run
from tests.support.model_files import ROOT
from tests.support.pages import shell_lines
from tests.support.tiny_runs import of_one_thread
from tests.unit.test_imports import FILE_LINES, FUNCTION_LINES

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LINES = shell_lines(ROOT / "CONTRIBUTING.md")
MAKE = [line for line in LINES if line.startswith("make ")]
PYTHON = ".venv/bin/python -m "
TESTS = [line for line in LINES if line.startswith(f"{PYTHON}pytest ")]
PAGES = [line for line in LINES if line.startswith(PYTHON) and " > " in line]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=ROOT,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_line_is_of_a_kind_that_is_tried_below() -> None:
    assert MAKE and TESTS and PAGES
    assert set(LINES) == {*MAKE, *TESTS, *PAGES}


@pytest.mark.parametrize("line", MAKE)
def test_make_knows_what_to_do(line: str) -> None:
    """Of a name that is a file's and no target's it says that nothing is to be done."""
    done = dry_run("--always-make", *shlex.split(line)[1:])  # what is made already is shown too
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stdout.startswith("make: ")


@pytest.mark.slow
@pytest.mark.parametrize("line", TESTS)
def test_the_tests_are_found(line: str) -> None:
    """They are collected and not run: they are run where they are. pytest ends with 5 if a name
    fits none."""
    done = run([sys.executable, *shlex.split(line)[1:], "--collect-only"])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("line", PAGES)
def test_a_page_written_anew_is_the_committed_one(line: str) -> None:
    command, _, page = line.partition(" > ")
    done = run([sys.executable, *shlex.split(command)[1:]])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / page).read_text(encoding="utf-8")


def test_the_measures_are_those_that_are_held() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (width,) = re.findall(r"^line-length = (\d+)$", project, flags=re.MULTILINE)
    said = (
        f"Files have at most {FILE_LINES} lines, functions at most {FUNCTION_LINES}, lines at most"
    )
    assert f"{said} {width} characters" in " ".join(TEXT.split())
