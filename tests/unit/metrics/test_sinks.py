"""Numbers that are none, on their way to the files of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llama.metrics.sinks import JSONLSink, TensorBoardSink

BAD = {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.5, "skipped": True}


def test_a_line_of_metrics_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "metrics.jsonl")
    sink.scalars(3, BAD)
    sink.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"step": 3, **BAD, "loss": None, "grad_norm": None}


def test_tensorboard_gets_numbers_alone(tmp_path: Path) -> None:
    """A histogram of NaN is an error there, and would end a run that only wants to be watched."""
    sink = TensorBoardSink(tmp_path)
    sink.scalars(3, BAD)
    sink.histogram(3, "norms", torch.tensor([1.0, math.nan, math.inf, 2.0]))
    sink.histogram(4, "norms", torch.tensor([math.nan]))
    sink.close()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["learning_rate", "skipped"]
    (norms,) = board.Histograms("norms")
    assert norms.step == 3
    assert (norms.histogram_value.num, norms.histogram_value.sum) == (2, 3.0)
