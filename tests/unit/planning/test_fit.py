"""The search for what fits, over functions and over real plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama.model.kept import Kept
from llama.model.presets import PRESETS
from llama.planning.fit import (
    _largest,
    estimate,
    fits,
    largest_micro_batch,
    largest_seq_len,
)
from llama.planning.job import Job, Zero
from llama.planning.memory import memory

JOB = Job(PRESETS["llama-3.2-1b"], checkpointing="block")


@pytest.mark.parametrize("available", [0, 1, 2, 17, 100, 4095, 4096, 10**9])
def test_the_largest_number_is_found_on_a_line(available: int) -> None:
    asked: list[int] = []

    def used(n: int) -> int:
        asked.append(n)
        return n

    assert _largest(used, available, 4096) == min(available, 4096)
    assert len(asked) <= 8


@pytest.mark.parametrize("jump", [2, 3, 100, 1000, 4096])
def test_and_on_a_staircase(jump: int) -> None:
    asked: list[int] = []

    def used(n: int) -> int:
        asked.append(n)
        return n if n < jump else 10**12

    assert _largest(used, 10**6, 4096) == jump - 1
    assert len(asked) <= 45


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, checkpointing="none", fused=True),
        replace(JOB, lora=None),
        replace(JOB, precision="fp32", zero=Zero(stage=0)),
        # Buckets of the first micro-batch are there in the second.
        replace(JOB, checkpointing="none", fused=True, accumulation=2),
        replace(JOB, checkpointing=(Kept.FFN_INPUTS,) * 16, fused=True),
        # What the optimizer takes at first is the most in a small model alone.
        replace(JOB, lora=None, zero=Zero(3), data_parallel=8),
    ],
    ids=["block", "fused", "full", "fp32", "accumulated", "of each block", "full over ranks"],
)
def test_an_estimate_is_near_the_plan(job: Job) -> None:
    assert estimate(job) == pytest.approx(memory(job).used_bytes, rel=0.001)


@pytest.mark.long
def test_what_is_found_fits_and_little_more_does() -> None:
    available, job = 5 * 2**30, replace(JOB, config=JOB.config.with_layers(6))
    rows = largest_micro_batch(job, available)
    assert fits(replace(job, micro_batch=rows), available)
    assert not fits(replace(job, micro_batch=rows + 1 + rows // 25), available)
    length = largest_seq_len(job, available)
    assert length % 128 == 0 and fits(replace(job, seq_len=length), available)
    assert largest_micro_batch(job, 2**30) == 0
