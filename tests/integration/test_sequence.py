"""`--sequence_parallel` as a user gives it: proved by `verify`, trained with, gone on with and
without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_resume import assert_within_rounding, metrics, straight_run
from tests.support.model_files import ROOT
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import launched, succeeded, write_model

pytestmark = pytest.mark.slow

SHARED = ("--sequence_parallel", "2")


@pytest.mark.long
def test_verify_proves_it(tmp_path: Path) -> None:
    options = ("--deepspeed", ROOT / "ds_configs" / "lora_bf16.json", "--lora.rank", "4", "--json")
    more = ("--model", write_model(tmp_path / "model"), "--seq_len", "48", "--steps", "3", *SHARED)
    result = succeeded(launched("deepspeed", "verify.py", *options, *more, ranks=2))
    assert result["agrees"] and [run["run"] for run in result["runs"]] == [
        "tensor parallel 1 x sequence parallel 2 x data parallel 1, ZeRO-1, accumulation 2, "
        f"{precision}, against one process in float32"
        for precision in ("fp32", "bf16")
    ]
    degrees = {"tensor_parallel": 1, "sequence_parallel": 2, "data_parallel": 1}
    assert result["topology"] == {"world_size": 2, **degrees}


@pytest.mark.long
def test_a_run_goes_on_with_its_tokens_shared_and_not(tmp_path: Path) -> None:
    """Three steps on two ranks that share each row, three on one rank, the last two as at first;
    evaluated by both. As many rows to a step as one rank has, and so the same steps."""
    case, kind = Case(tmp_path), settings("zero1-fp32")
    straight = straight_run(case)
    case.go()
    case.add("shared", kind, 3, *SHARED)
    case.go(ranks=2)
    record = json.loads((case.out("shared") / "run.json").read_text())
    assert record["topology"]["sequence_parallel"] == record["options"]["sequence_parallel"] == 2
    case.add("shared", kind, 3)
    assert "sequence_parallel: the run began with 2, and is now given 1" in case.go()
    case.add("shared", kind, None, *SHARED)
    said = case.go(ranks=2)
    assert "2: tensor-parallel 1 x sequence-parallel 2 x data-parallel 1, ZeRO-1" in said
    assert "2 packed rows (micro-batch 1 x 2 x 1 rank)" in said
    out = case.out("shared")
    assert len(metrics(straight)) > STEPS
    assert_within_rounding(out, straight)
