"""The script that puts `--checkpointing auto` under caps: what it draws, what it tells."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.auto_caps import STEPS, drawn, line, verdict
from tests.support.model_files import ROOT
from tests.support.tiny_runs import of_one_thread


def result(auto: bool, ratio: float | None) -> dict[str, Any]:
    ended = {"ended": auto, "ms": 10.0, "kept_at_the_end": "all", "retries": 0}
    fixed = {"best": "ffn", "ffn": {"ms": 10.0}} if ratio else {"best": None}
    return {"case": "c", "cap_gib": 2.0, "auto": ended, "ratio": ratio, **fixed}


def test_one_seed_draws_the_same_cases_whose_last_rows_are_longer() -> None:
    cases = [
        [drawn(dice, True) for _ in range(40)] for dice in (random.Random(3), random.Random(3))
    ]
    assert cases[0] == cases[1] and len({case.name for case in cases[0]}) > 30
    for case in cases[0][:4]:
        small = replace(case, length=64)
        windows = small.windows(90)
        sizes = [sum(len(batch.tokens) for batch in window) for window in windows]
        of_a_step = 64 * case.rows * case.micro_batches
        assert sizes == [of_a_step] * (STEPS - 1) + [of_a_step * 5 // 4]


def test_the_summary_counts_what_ended_and_what_was_close() -> None:
    results = [result(True, 1.04), result(True, 1.2), result(True, None), result(False, None)]
    found = verdict(results)
    assert (found["configurations"], found["auto_ended"]) == (4, 3)
    assert (found["compared"], found["close"], found["worst_ratio"]) == (2, 1, 1.2)
    assert "DID NOT END" in line(results[3]) and "1.040" in line(results[0])


@pytest.mark.slow
def test_it_goes_through_on_a_cpu(tmp_path: Path) -> None:
    command = ["-m", "tests.gpu.auto_caps", "--tiny", "--count", "1", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "auto-caps.json").read_text())
    assert document["summary"]["auto_ended"] == 1 and document["summary"]["errors"] == 0
    (only,) = document["results"]
    assert all(len(only[s]["steps_ms"]) == STEPS for s in ("auto", "none", "ffn", "block"))
