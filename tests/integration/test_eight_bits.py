"""Runs with `--base int8` and `fp8` as a user makes them: stopped and gone on with bit for bit,
whatever is computed again, and of an adapter that serves over the base as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_resume import assert_the_same
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import launched, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.numeric]

BF16, FP32 = settings("zero1-bf16"), settings("zero1-fp32")
BASES = ("int8", "fp8")
ROUNDING = 0.02
"""Two runs whose products round otherwise: of the loss that each ends with. A number of eight bits
is rounded by 4% at most, up or down by chance; of a loss, a mean over tokens, less is left."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = Case(tmp_path_factory.mktemp("eight"), lora=("--lora.targets", "wq,wo,w1,w2"))
    made.add("half", FP32, None)
    for base in BASES:
        made.add(base, FP32, None, "--base", base)
        made.add(f"straight-{base}", BF16, None, "--base", base)
        made.add(f"stopped-{base}", BF16, 3, "--base", base, "--checkpointing", "ffn")
        made.add(f"stopped-{base}", BF16, None, "--base", base)
    made.go()
    return made


@pytest.mark.parametrize("base", BASES)
def test_a_stop_changes_nothing(base: str, case: Case) -> None:
    assert_the_same(case.out(f"stopped-{base}"), case.out(f"straight-{base}"))


@pytest.mark.parametrize("base", BASES)
def test_it_learns_what_one_on_the_dense_weights_does(base: str, case: Case) -> None:
    """Nearly: it is not the same run."""
    found, half = (loss(case.out(name)) for name in (base, "half"))
    assert found == pytest.approx(half, rel=ROUNDING) and found != half


@pytest.mark.parametrize("base", BASES)
def test_its_adapter_serves_over_either(base: str, case: Case) -> None:
    """Over the base that it was trained on, its loss is what the run said."""
    given = ("--adapter", case.out(base), "--data", case.held_out, "--seq_len", 96)
    found = {}
    for over in (base, "half"):
        more = ("--precision", "float32", "--base", over, "--json")
        done = succeeded(launched("python", "evaluate.py", *map(str, (*given, *more))))
        found[over] = done["loss"]
    # Batches are others than in the run, and so are sums in their last digits: what that rounds
    # to another code is rare.
    assert found[base] == pytest.approx(loss(case.out(base)), rel=ROUNDING / 10)
    assert found["half"] == pytest.approx(found[base], rel=ROUNDING)


def loss(out: Path) -> float:
    return json.loads((out / "summary.json").read_text())["eval_loss"]
