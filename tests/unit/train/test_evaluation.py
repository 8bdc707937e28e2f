"""What is said of an evaluation that gives no number."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from llama.train import evaluation
from llama.train.evaluation import Evaluations


@pytest.mark.parametrize(("loss", "count"), [(math.nan, 1), (math.inf, 1), (2.5, 0)])
def test_a_model_that_gives_no_number_before_its_first_step_is_told_of(
    loss: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    summary: dict[str, Any] = {}
    report: Any = SimpleNamespace(say=said.append, evaluation=lambda *_: None)
    plan: Any = SimpleNamespace(
        resolved=SimpleNamespace(micro_batch=1), epochs=SimpleNamespace(windows_per_epoch=4)
    )
    inputs: Any = SimpleNamespace(held_out=SimpleNamespace(packed=[]))
    engine: Any = SimpleNamespace(steps=0)
    none: Any = None
    monkeypatch.setattr(evaluation, "held_out_loss", lambda *_: loss)
    Evaluations(engine, inputs, plan, none, none, report, summary).before()
    assert len(said) == count and summary["eval_loss_before"] is loss
    assert all(f"held-out loss is {loss} before the first step" in line for line in said)
