"""The DeepSpeed JSONs of other trainers' recipes, as they are: each trains here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.recipes import TRAINED
from tests.support.tiny_runs import torchrun_module


@pytest.mark.slow
@pytest.mark.long
def test_each_trains_on_two_ranks(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = torchrun_module("tests.parity.recipe_steps", "--out", out, ranks=2)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results.keys() == TRAINED.keys()
    for name, found in results.items():
        assert all(map(math.isfinite, found["losses"])) and not found["replicas"], (name, found)
        # A's first gradient is a product with B, which is zero: each B moves in the first step
        # at a rate above 0.
        assert found["moved"] >= found["tensors"] / 2, (name, found)
        stage = TRAINED[name]["zero_optimization"]["stage"]
        assert found["stage"] == (1 if stage == "auto" else stage), (name, found)
        halves = any((TRAINED[name].get(kind) or {}).get("enabled") for kind in ("fp16", "bf16"))
        precision = "bf16" if halves and found["stage"] else "fp32"
        assert found["precision"] == precision, (name, found)
