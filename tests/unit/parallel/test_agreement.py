"""Ranks that wait for one that is slow over its files."""

from __future__ import annotations

import pytest

from tests.support.tiny_runs import torchrun_module


@pytest.mark.slow
@pytest.mark.long
def test_a_rank_may_take_longer_than_a_collective_waits() -> None:
    """Hashing or reading a large model from a slow disk takes more than the ten minutes after which
    a collective gives up: that would end the run at its start, on every start. There is an end
    to it, though."""
    done = torchrun_module("tests.unit.parallel.waiting_ranks", ranks=2)
    assert done.returncode == 0, done.stderr
