"""A few faults of the matrix; all of them: `make test-faults`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.model_files import ROOT

pytestmark = pytest.mark.slow

FAULTS = (
    "SIGKILL of a rank at a random moment",
    "one rank of two hangs",
    "an adapter tensor drifts on one rank",
    "port in use",
    "a rank that never comes",
    "file size limit (RLIMIT_FSIZE)",
    "a second SIGTERM",
    "SIGTERM to deepspeed",
)


@pytest.mark.long
@pytest.mark.timeout(2100)
def test_a_sample_of_the_matrix() -> None:
    """In a process of its own: it forks, and pytest has threads."""
    pattern = "|".join(f"^{fault}$" for fault in FAULTS).replace("(", r"\(").replace(")", r"\)")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.matrix", "--most", "1", "--only", pattern],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in FAULTS:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {fault} |")]
        assert "| as promised |" in line, line
