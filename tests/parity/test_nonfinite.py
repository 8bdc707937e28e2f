"""A step that went non-finite is skipped by all ranks or by none, is explained, and does not go on
for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama.engine.engine import MOST_SKIPPED
from tests.parity.nonfinite_steps import CASES, PLACE, POWER
from tests.support.tiny_runs import torchrun_module

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    ("degree", "stages"), [(1, "0123"), (2, "01")], ids=["data parallel", "tensor parallel"]
)
def test_nan_on_one_rank(degree: int, stages: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    arguments = ["--tensor_parallel", str(degree), "--stages", stages, "--out", out]
    done = torchrun_module("tests.parity.nonfinite_steps", *arguments, ranks=2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first) == sum(str(stage) in stages for _, stage in CASES)
    for name, found in first.items():
        assert found["applied"] == [True, False, True], name
        assert found["unchanged"] and found["finite"] and not found["replicas"], name
        assert "the loss was the first to go non-finite" in found["reason"], (name, found)
        assert "(rank 1)" in found["reason"], (name, found)
        if "stopped" not in found:
            continue
        assert f"the weight {PLACE}.weight was the first" in found["stopped"], (name, found)
        assert ": 1 of " in found["stopped"], (name, found)
        if name.startswith("fp16"):
            assert found["steps_until_stopped"] == POWER, (name, found)  # one was halved before
            assert "loss scale is at its minimum" in found["stopped"]
            assert "train in bf16" in found["stopped"]
        else:
            assert found["steps_until_stopped"] == MOST_SKIPPED, (name, found)
            assert f"{MOST_SKIPPED} steps in a row" in found["stopped"]
