"""Tensor parallelism x data parallelism x ZeRO train what one process does, and what would not is
seen. The whole table, 310 cases, is `make topologies`; docs/topologies.md keeps it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.parity.broken_builds import BROKEN, BROKEN_IN_BF16, NOTHING, NOTHING_IN_BF16
from tests.parity.topologies import ACCUMULATIONS, STAGES
from tests.parity.topology_table import LIMITS
from tests.support.model_files import ROOT
from tests.support.tiny_runs import torchrun_module

pytestmark = [pytest.mark.slow, pytest.mark.long]
COMMITTED = 1e-5
"""Of each of them in the tables that are kept; of an adapter the wider limit where ranks share
tokens."""


def _result(folder: Path, module: str, *argv: str) -> Any:
    out = folder / "out.json"
    done = torchrun_module(module, *argv, "--out", out, ranks=4)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


WAYS = {
    "lora": (),
    "full": ("--method", "full"),
    "tokens shared": ("--sequence_parallel", "2"),
}


@pytest.fixture(scope="module", params=WAYS)
def rows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Two shards, two copies, or two that share tokens: each stage and accumulation, blocks
    recomputed; the whole model with a vocabulary that the degree does not divide."""
    arguments = ["--tensor_parallel", "2", "--checkpointing", "block", *WAYS[request.param]]
    return _result(tmp_path_factory.mktemp("rows"), "tests.parity.topologies", *arguments)


def test_every_stage_trains_what_one_process_does(rows: list[dict[str, Any]]) -> None:
    cases = {(row["zero_stage"], row["accumulation"]) for row in rows}
    assert cases == {(stage, steps) for stage in STAGES for steps in ACCUMULATIONS}
    assert {row["zero_stage"] for row in rows if row["shard_base"]} in ({0, 1, 2}, set())
    for row in rows:
        assert all(row[what] <= limit for what, limit in LIMITS.items()), row
        assert row["replicas_equal"], row


def test_the_optimizer_holds_twelve_bytes_a_parameter(rows: list[dict[str, Any]]) -> None:
    """Masters and two moments over the shards, nothing for a frozen base; float32 under ZeRO-0
    keeps no masters beside the parameters."""
    for row in rows:
        assert row["bytes_per_parameter"] == (8 if row["zero_stage"] == 0 else 12), row


def test_verify_sees_every_broken_build(tmp_path: Path) -> None:
    found = _result(tmp_path, "tests.parity.broken_builds")
    sound = (NOTHING, NOTHING_IN_BF16)
    assert found == {name: name in sound for name in (*BROKEN, *BROKEN_IN_BF16)}


def test_the_committed_table_is_whole_and_within_its_limit() -> None:
    text = (ROOT / "docs" / "topologies.md").read_text()
    whole, sharded, shared = (
        [line for line in part.splitlines() if re.match(r"\| \d", line)]
        for part in text.split("\n## ")
    )
    of_a_stage = 3 * len(ACCUMULATIONS) * 3
    assert len(shared) == len(set(shared)) == 4 * (len(STAGES) + 3) * len(ACCUMULATIONS) * 2
    shared = [f"|{line.split('|', 2)[2]}" for line in shared]  # it has one column more
    assert len(whole) == len(set(whole)) == 2 * len(STAGES) * of_a_stage
    assert len(sharded) == len(set(sharded)) == 3 * of_a_stage
    for line in [*whole, *sharded, *shared]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        limits = (COMMITTED, COMMITTED, LIMITS["adapter"] if line in shared else COMMITTED)
        found = zip(map(float, cells[5:8]), limits, strict=True)
        assert all(one <= limit for one, limit in found) and cells[8] == "equal", line
