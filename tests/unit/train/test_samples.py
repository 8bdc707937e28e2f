"""Answers of a model that several ranks hold."""

from __future__ import annotations

import pytest

from tests.support.tiny_runs import torchrun_module


@pytest.mark.slow
def test_all_ranks_write_the_first_one_s_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, and to the same end: under ZeRO-3 each forward pass is everybody's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = torchrun_module("tests.unit.train.answering_ranks", ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr
