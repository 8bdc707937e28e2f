"""ZeRO-3 shards the frozen base: it is never whole beyond the layers in use, and is read once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parity.zero3_gathers import CONFIG
from tests.support.tiny_runs import torchrun_module


@pytest.mark.slow
@pytest.mark.long
def test_the_base_is_never_whole(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = torchrun_module("tests.parity.zero3_gathers", "--out", out, ranks=2)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]
    for found in ranks:
        assert 0 < found["most_whole"] <= 3 * found["block"] < found["total"] / 2
        assert found["whole_after_step"] == 0 and found["trains"]
        assert found["most_whole_loading"] <= CONFIG.ffn_dim * CONFIG.dim  # one parameter
    assert [found["elements_read"] for found in ranks] == [CONFIG.parameter_count(), 0]


@pytest.mark.long
@pytest.mark.slow
def test_a_recomputed_block_is_gathered_twice_and_not_three_times() -> None:
    """For the forward, and for the recomputation and the backward together."""
    done = torchrun_module("tests.parity.zero3_windows", ranks=2)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    times = {(row[0], row[1]): float(row[2]) for row in rows if row[0] in ("block", "none")}
    assert 1.9 < times["block", "1"] < 2.2 and times["none", "1"] < 2
    assert times["block", "100"] < 1.5 and 0.9 < times["none", "100"] < 1.1
