"""The fused block over tensor-parallel ranks against the plain one on the same ranks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import environment, free_port


@pytest.mark.slow
def test_fused_equals_plain_on_two_ranks() -> None:
    start = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    start += ["--master_port", str(free_port()), "-m", "tests.unit.fused.tensor_parallel_ranks"]
    done = subprocess.run(
        [sys.executable, *start],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
