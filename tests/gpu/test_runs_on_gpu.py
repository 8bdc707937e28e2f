"""Whole runs with every way to keep or recompute, whose passes are CUDA graphs, against the same
run launched kernel by kernel: with all that a run puts around its model."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests.gpu.children import Done, train_together
from tests.support.skips import needs_gpus
from tests.support.tiny_runs import losses_of, succeeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    needs_gpus(),
]
WAYS = ("none", "ffn", "block", "host", "auto")
STEPS = 12
"""A run looks at its first three through hooks, which launch it; then a shape is recorded."""
TOLERANCE = 1e-2
"""Relative, of a step's loss: half of what bf16 may be from float32 in `test_on_gpu`."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Done, Path]]:
    """Rows of real lengths, two micro-batches a step, an evaluation on the way."""
    options = (
        *("--deepspeed", "ds_configs/lora_bf16.json", "--model", "random:smollm2-135m"),
        *("--eval_split", "8", "--eval_every", "6", "--seq_len", "512"),
        *("--max_steps", str(STEPS), "--lora.dropout", "0"),
    )
    own = {way: ("--checkpointing", way) for way in WAYS} | {"launched": ("--compile", "false")}
    each = {way: ([sys.executable], words) for way, words in own.items()}
    return train_together(tmp_path_factory.mktemp("runs"), options, each)


@pytest.mark.parametrize("way", WAYS)
def test_recorded_runs_lose_what_a_launched_one_does(
    way: str, runs: dict[str, tuple[Done, Path]]
) -> None:
    done, folder = runs[way]
    summary = succeeded(done)
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    said = ("CUDA graphs", "not compiled", "one fused function")  # in notes of why there are none
    assert not any(words in done.stderr for words in said), done.stderr
    succeeded(runs["launched"][0])
    found, expected = losses_of(folder), losses_of(runs["launched"][1])
    assert len(found) == len(expected) > STEPS and all(map(math.isfinite, found))
    for number, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert abs(own - other) <= TOLERANCE * other, number
