"""A command is printed in the form in which its reader started the program; a shell takes it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama.launch import typed as module
from llama.launch.typed import nearer, typed
from tests.support.model_files import ROOT


def started_as(
    monkeypatch: pytest.MonkeyPatch, script: str | Path, folder: Path, path: str | Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "1"])
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(path))


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_script_is_named_as_it_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the project's folder, and from another."""
    own = program(tmp_path / "bin", "python")
    monkeypatch.setattr(sys, "executable", str(own.with_name("python3.12")))
    started_as(monkeypatch, "launcher/train.py", ROOT, own.parent)
    assert typed("report", "a run") == "python launcher/report.py 'a run'"
    started_as(monkeypatch, ROOT / "launcher" / "train.py", tmp_path, own.parent)
    assert typed("report") == f"python {ROOT}/launcher/report.py"


def test_a_python_that_the_shell_does_not_find_is_named_by_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or finds another by that name."""
    own, other = (program(tmp_path / name, "python") for name in ("venv/bin", "usr/bin"))
    monkeypatch.setattr(sys, "executable", str(own))
    for path in (other.parent, tmp_path / "empty"):
        started_as(monkeypatch, "launcher/train.py", ROOT, path)
        assert typed("report") == f"{own} launcher/report.py"
    started_as(monkeypatch, "launcher/train.py", tmp_path, other.parent)
    assert typed("report").startswith("venv/bin/python -m llama report"), "no such script is there"


def test_an_installed_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = program(tmp_path / "venv" / "bin", "llama-lora")
    started_as(monkeypatch, own, tmp_path, own.parent)
    assert typed("chat", "--adapter", Path("runs/x")) == "llama-lora chat --adapter runs/x"
    started_as(monkeypatch, own, tmp_path / "venv", tmp_path / "empty")
    assert typed("chat") == "bin/llama-lora chat"


def test_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m llama`, or under a launcher `--module llama.commands.train`."""
    own = program(tmp_path / "bin", "python")
    monkeypatch.setattr(sys, "executable", str(own))
    for script in ("llama/__main__.py", "llama/commands/train.py"):
        started_as(monkeypatch, ROOT / script, tmp_path, own.parent)
        assert typed("report") == "python -m llama report"


def test_a_shell_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher/train.py"])
    monkeypatch.chdir(ROOT)
    line = typed("report", "a folder; that is not there")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a folder; that is not there" in done.stderr, done.stderr
    assert shlex.split(line)[-1] == "a folder; that is not there"


def test_a_path_is_seen_from_where_one_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nearer(tmp_path / "a" / "b") == Path("a/b")
    assert nearer(Path(os.sep, "elsewhere")) == Path(os.sep, "elsewhere")


def test_only_what_there_is_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_offered", set())
    module.offer({"train": None, "report": None})
    assert module.is_offered("report") and not module.is_offered("export")
