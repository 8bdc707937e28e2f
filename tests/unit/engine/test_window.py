"""Gradients that are added up before DeepSpeed sees them are the sums that it makes itself.

But for their order under ZeRO-2 over several ranks: there DeepSpeed sums each micro-batch over the
ranks and then those sums, where ours are summed over the ranks at the end of the step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import environment, write_model

ROUNDING = {"float32": 2e-6, "bf16": 2.0**-8}
"""Of a loss and of a norm: some roundings of the type in which gradients are added up."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "tensor_parallel"),
    [
        (1, 1),
        (2, 1),
        (2, 2),
        (4, 2),
    ],
    ids=["one", "DP 2", "TP 2", "TP 2 x DP 2"],
)
def test_steps_are_the_same_to_the_last_digit(
    tmp_path: Path, ranks: int, tensor_parallel: int
) -> None:
    """With dropout, several micro-batches a step, and each data-parallel rank's own rows; bf16 is
    added up in bf16 on either side. A norm counts what every shard of a model has once."""
    write_model(tmp_path / "model")
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    start += ["--master_port", str(free_port())] if ranks > 1 else []
    command = [sys.executable, *start, "-m", "tests.unit.engine.window_steps"]
    done = subprocess.run(
        [*command, str(tmp_path / "model"), str(tensor_parallel)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for stage in (1, 2, 3) if ranks == 1 else ():
        alone, scaled = found.pop(f"ZeRO-{stage}, scaled")
        # Doubled after the second step; the gradients of the third are not finite.
        assert scaled.pop("scales") == [4.0, 8.0, 4.0, 4.0] != alone.pop("scales")
        for said in (alone, scaled):
            del said["counters"]
        assert scaled == alone, "gradients are divided by another scale than was in them"
    assert len(found) == 5
    for case, (by_deepspeed, together) in found.items():
        assert min(by_deepspeed["micro_batches"]) > 1
        assert by_deepspeed["applied"] == [True, True, False, True]
        precision, stage = case.split(" at ")
        if stage != "ZeRO-2" or ranks == tensor_parallel:
            assert together == by_deepspeed, case
            continue
        assert together != by_deepspeed, "the ranks' sums could not have been taken otherwise"
        for name in ("losses", "grad_norms"):
            near = pytest.approx(by_deepspeed[name], rel=ROUNDING[precision])
            assert together[name] == near, case
