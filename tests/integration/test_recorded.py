"""Runs whose passes are recorded, with all that a run puts around its model, on a CPU; the graphs
themselves: tests/gpu/test_runs_on_gpu.py."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import (
    deepspeed_json,
    losses_of,
    of_one_thread,
    succeeded,
    write_json,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow
STEPS = 8
"""A run looks at its first three through hooks, which launch it; then a shape is recorded."""
HALF = 2.0**-8 * 4
"""Relative, of a loss: some roundings of bf16."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("recorded")
    settings = deepspeed_json(1) | {"bf16": {"enabled": True}}
    return [
        *("--deepspeed", write_json(folder / "settings.json", settings)),
        *("--model", write_model(folder / "model"), "--template", "chatml"),
        *("--data", write_rows(folder / "rows.json", 40), "--eval_every", "5"),
        *("--eval_data", write_rows(folder / "held_out.json", 5)),
        *("--seq_len", "256", "--max_steps", str(STEPS), "--lora.dropout", "0", "--json"),
    ]


def trained(start: list[str], options: list[Any], out: Path, *more: str) -> tuple[Any, list[float]]:
    words = map(str, [sys.executable, *start, *options, "--output_dir", out, *more])
    done = subprocess.run(
        list(words), cwd=ROOT, env=of_one_thread(), capture_output=True, text=True, check=False
    )
    summary = succeeded(done)
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    return done, losses_of(out)


@pytest.fixture(scope="module")
def launched(options: list[Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("launched")
    return trained(["launcher/train.py"], options, out)[1]


@pytest.mark.parametrize(
    "way",
    [
        "none",
        pytest.param("ffn", marks=pytest.mark.long),
        pytest.param("block", marks=pytest.mark.long),
        "host",
        pytest.param("auto", marks=pytest.mark.long),
    ],
)
def test_a_run_records_its_passes_and_loses_what_a_launched_one_does(
    way: str, options: list[Any], launched: list[float], tmp_path: Path
) -> None:
    start = ["-m", "tests.integration.recorded_on_cpu"]
    done, losses = trained(start, options, tmp_path, "--checkpointing", way)
    assert "recorded: ['evaluations', 'training']" in done.stderr
    assert "CUDA graphs" not in done.stderr
    assert len(losses) == len(launched) > STEPS and all(map(math.isfinite, losses))
    for own, other in zip(losses, launched, strict=True):
        assert abs(own - other) <= HALF * other
