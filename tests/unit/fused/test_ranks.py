"""The fused block over ranks that share a model, or the tokens of a row, against the plain one on
the same ranks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import environment, free_port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "ranks"),
    [("tensor_parallel", 2), ("sequence_parallel", 2), ("sequence_parallel", 4)],
)
def test_fused_equals_plain_on_ranks(parallel: str, ranks: int) -> None:
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    start += ["--master_port", str(free_port()), "-m", f"tests.unit.fused.{parallel}_ranks"]
    done = subprocess.run(
        [sys.executable, *start],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
