"""The reduction of ZeRO 1 and 2 that sends each gradient to its owner alone."""

from __future__ import annotations

import pytest

from tests.support.skips import needs_gpus
from tests.support.tiny_runs import launched

RANKS = "../tests/unit/engine/owners_ranks.py"


@pytest.mark.slow
def test_gradients_are_summed_at_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # three ranks, through gloo
    done = launched("torchrun", RANKS, ranks=3)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_gpus(2)
def test_gradients_are_summed_at_their_owner_through_nccl() -> None:
    done = launched("torchrun", RANKS, ranks=2)
    assert done.returncode == 0, done.stderr
