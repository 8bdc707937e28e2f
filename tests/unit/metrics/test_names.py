"""What numbers are called where a run is watched."""

from __future__ import annotations

import math

from llama.metrics.names import grouped


def test_numbers_of_a_step_are_in_groups_and_what_is_none_is_left_out() -> None:
    line = {
        "step": 3,
        "epoch": 1,
        "loss": math.nan,
        "grad_norm": math.inf,
        "loss_scale": None,
        "skip_reason": "overflow",
        "skipped": True,
        "tokens_per_second": 10.5,
        "peak_memory_bytes": 3 << 29,
    }
    assert grouped(line) == {
        "train/epoch": 1.0,
        "train/skipped": 1.0,
        "speed/tokens_per_second": 10.5,
        "memory/peak_gib": 1.5,
    }


def test_an_evaluation_says_no_epoch_of_its_own() -> None:
    """The step that it is of has said one, as the number of the epoch and not of those done."""
    assert grouped({"step": 8, "epoch": 1, "eval_loss": 2.5}) == {"eval/loss": 2.5}
