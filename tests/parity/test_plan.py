"""The planned memory of a step against the most that lives in a real one, on the CPU."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from llama.kernels import products
from llama.planning.memory import memory
from tests.parity.plan_cases import CASES
from tests.support.tiny_runs import torchrun_module

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

TOLERANCE = 0.02
"""A plan is a step's own trace: what is left is what DeepSpeed rounds and forgets."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Of each case what one of its ranks held; those of one topology share their processes."""
    together: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for name, case in CASES.items():
        together[case.tensor_parallel, case.sequence_parallel, case.data_parallel].append(name)
    found: dict[str, dict[str, int]] = {}
    for (tensor_parallel, _, data_parallel), names in together.items():
        out: Path = tmp_path_factory.mktemp("plan") / "measured.json"
        ranks = tensor_parallel * data_parallel
        done = torchrun_module("tests.parity.plan_steps", out, *names, ranks=ranks, timeout=3000)
        assert done.returncode == 0, done.stderr[-4000:]
        found |= json.loads(out.read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_what_is_planned(
    name: str, measured: dict[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setattr(products, "cpu_has_bf16", lambda: case.has_bf16)
    planned = memory(case.job()).peak_bytes
    held = measured[name]["peak"]
    print(f"\n{name}: planned {planned:,}, measured {held:,}, {planned / held - 1:+.2%}")
    assert planned == pytest.approx(held, rel=TOLERANCE)
