"""Runs a notebook's cells in order, as far as a reader's Jupyter would be needed: Python in one
namespace, and each line that begins with `!` in a shell, which sees the variables of the
environment that the cells before have set. No kernel, and no package of Jupyter's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[str]:
    """The text of every code cell."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(path: Path) -> list[str]:
    """What each `!` line printed, standard error included. Raises `CalledProcessError` where one
    fails, which Jupyter would not mind, and whatever a cell raises."""
    names: dict[str, Any] = {}
    printed = []
    for number, cell in enumerate(code_cells(path)):
        if not cell.startswith("!"):
            exec(compile(cell, f"{path.name}, code cell {number}", "exec"), names)
            continue
        for line in cell.splitlines():
            assert line.startswith("!"), f"a cell is Python or commands: {cell}"
            done = subprocess.run(
                ["bash", "-c", line[1:]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
            print(done.stdout)  # what pytest shows of a test that fails
            done.check_returncode()
            printed.append(done.stdout)
    return printed
