"""Numbers that are none, on their way to the files of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llama.metrics.json_lines import JSONLines

BAD = {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.5, "skipped": True}


def test_a_line_of_metrics_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    lines = JSONLines(tmp_path / "metrics.jsonl")
    lines.write(3, BAD)
    lines.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"step": 3, **BAD, "loss": None, "grad_norm": None}
