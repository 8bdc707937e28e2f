"""Whole runs with every way to keep or recompute, whose passes are CUDA graphs, against the same
run launched kernel by kernel: with all that a run puts around its model."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from llama.data.rows import bundled
from tests.gpu.children import Done, run_together
from tests.support.skips import needs_gpus
from tests.support.tiny_runs import read_lines, succeeded
from tests.support.tokenizer_files import write_sentencepiece

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
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = write_sentencepiece(folder / "tokenizer.model")
    options = (
        *("--deepspeed", "ds_configs/lora_bf16.json", "--model", "random:smollm2-135m"),
        *("--tokenizer", tokenizer, "--data", bundled("instructions_200"), "--template", "alpaca"),
        *("--eval_split", "8", "--eval_every", "6", "--seq_len", "512"),
        *("--max_steps", str(STEPS), "--lora.dropout", "0", "--json"),
    )
    commands = {
        way: [
            *(sys.executable, "launcher/train.py", *options, "--output_dir", folder / way),
            *(("--checkpointing", way) if way in WAYS else ("--compile", "false")),
        ]
        for way in (*WAYS, "launched")
    }
    return {way: (done, folder / way) for way, done in run_together(commands).items()}


def losses(folder: Path) -> list[float]:
    lines = read_lines(folder / "metrics.jsonl")
    return [line[key] for line in lines for key in ("loss", "eval_loss") if key in line]


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
    found, expected = losses(folder), losses(runs["launched"][1])
    assert len(found) == len(expected) > STEPS and all(map(math.isfinite, found))
    for number, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert abs(own - other) <= TOLERANCE * other, number
