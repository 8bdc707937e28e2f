"""docs/first_hour.ipynb: its form, and all its cells in order, on a model of a few kilobytes."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from llama.commands.start import listing
from llama.commands.table import COMMANDS
from tests.support.model_files import ROOT
from tests.support.notebook import code_cells, run_cells
from tests.support.tiny_runs import read_lines, write_model

NOTEBOOK = ROOT / "docs/first_hour.ipynb"


def test_its_form() -> None:
    """nbformat 4.5: what every reader of notebooks asks of one. No outputs: they would be of some
    machine, and go stale."""
    document: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in document["cells"]:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cell["id"])
        assert {"cell_type", "metadata", "source"} <= cell.keys()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_its_lines_are_commands() -> None:
    lines = [line for cell in code_cells(NOTEBOOK) for line in cell.splitlines() if line[:1] == "!"]
    words = [shlex.split(line[1:]) for line in lines]
    assert all(line[0] == "llama-lora" for line in words)
    assert {"plan", "train", "generate", "evaluate"} <= {line[1] for line in words if line[1:]}
    assert all(line[1] in COMMANDS for line in words if line[1:])


@pytest.mark.long
@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small by the variables that its first cell leaves to whoever has set them."""
    program = tmp_path / "bin/llama-lora"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m llama "$@"\n')
    program.chmod(0o755)
    write_model(tmp_path / "model")
    settings = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MODEL": str(tmp_path / "model"),
        "RUN": "runs/first",
        "STEPS": "1",
        "MORE_STEPS": "2",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")  # draws, and shows nothing
    listed, *_, trained_on = run_cells(NOTEBOOK)
    assert listed == listing() + "\n"
    assert "step 2/2" in trained_on
    steps = [line["step"] for line in read_lines(tmp_path / "runs/first/metrics.jsonl")]
    assert steps[-1] == 2
    summary = json.loads((tmp_path / "runs/first/summary.json").read_text())
    assert summary["status"] == "finished"
