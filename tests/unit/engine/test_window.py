"""Gradients that are added up before DeepSpeed sees them are the sums that it makes itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import write_model


@pytest.mark.slow
def test_steps_are_the_same_to_the_last_digit(tmp_path: Path) -> None:
    """With dropout and several micro-batches a step; bf16 is added up in bf16 on either side."""
    write_model(tmp_path / "model")
    command = [sys.executable, "-m", "tests.unit.engine.window_steps", str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5
    for case, (by_deepspeed, together) in found.items():
        assert min(by_deepspeed["micro_batches"]) > 1
        assert together == by_deepspeed, case
