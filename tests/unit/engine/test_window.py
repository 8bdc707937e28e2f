"""Gradients that are added up before DeepSpeed sees them are the sums that it makes itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import environment, free_port, write_model


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_are_the_same_to_the_last_digit(tmp_path: Path, ranks: int) -> None:
    """With dropout and several micro-batches a step; bf16 is added up in bf16 on either side."""
    write_model(tmp_path / "model")
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    start += ["--master_port", str(free_port())] if ranks > 1 else []
    command = [sys.executable, *start, "-m", "tests.unit.engine.window_steps"]
    done = subprocess.run(
        [*command, str(tmp_path / "model")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5
    for case, (by_deepspeed, together) in found.items():
        assert min(by_deepspeed["micro_batches"]) > 1
        assert together == by_deepspeed, case
