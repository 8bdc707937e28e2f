"""Claims judged by pairs of combinations that differ in one technique."""

from __future__ import annotations

from typing import Any

import pytest

from llama.commands.ablate.grid import Case, grid
from llama.commands.ablate.measure import Result
from llama.commands.ablate.verdicts import Verdict, verdicts
from llama.settings import AblateOptions, check_ablate

PLAIN = Case("full", "float32", "none", 1, 4)
EQUAL = {"weights": 100, "activations": 1000, "gradients": 100, "optimizer": 200, "buffers": 10}


def result(case: Case, seconds: float = 1.0, eval_loss: float | None = 2.0, **parts: int) -> Result:
    most = EQUAL | parts
    return Result(case, 1, {}, None, sum(most.values()), most, most, seconds, 2.0, eval_loss, 2.5)


def found(*results: Result) -> dict[tuple[str, str], Verdict]:
    return {(v.technique, v.subject): v for v in verdicts(results)}


def test_every_claim_is_judged_or_said_to_be_open() -> None:
    every = found(result(PLAIN))
    assert len(every) == 12
    assert {v.confirmed for v in every.values()} == {None}
    assert {v.mark for v in every.values()} == {"not measured"}


@pytest.mark.parametrize(
    ("technique", "change", "better", "worse"),
    [
        ("Low precision", {"precision": "bf16"}, {"activations": 500, "gradients": 50}, {}),
        ("Gradient accumulation", {"accumulation": 4}, {"activations": 300}, {}),
        ("Gradient checkpointing", {"checkpointing": "block"}, {"activations": 300}, {}),
        ("LoRA", {"method": "lora"}, {"gradients": 2, "optimizer": 4}, {"gradients": 2}),
    ],
)
def test_memory_is_confirmed_where_all_that_is_claimed_is_less(
    technique: str, change: dict[str, Any], better: dict[str, int], worse: dict[str, int]
) -> None:
    case = PLAIN.but(**change)
    assert found(result(PLAIN), result(case, **better))[technique, "memory"].confirmed is True
    assert found(result(PLAIN), result(case, **worse))[technique, "memory"].confirmed is False


@pytest.mark.parametrize(
    ("technique", "change", "confirmed_when_faster"),
    [
        ("Low precision", {"precision": "bf16"}, True),
        ("Gradient accumulation", {"accumulation": 4}, False),
        ("Gradient checkpointing", {"checkpointing": "ffn"}, False),
        ("LoRA", {"method": "lora"}, True),
    ],
)
def test_time_is_judged_by_what_is_claimed(
    technique: str, change: dict[str, Any], confirmed_when_faster: bool
) -> None:
    case = PLAIN.but(**change)
    for seconds, faster in ((0.5, True), (2.0, False)):
        verdict = found(result(PLAIN), result(case, seconds))[technique, "time of a step"]
        assert verdict.confirmed is (faster == confirmed_when_faster)
        assert verdict.figure == f"x {seconds:.2f}"
    even = found(result(PLAIN), result(case, 1.01))[technique, "time of a step"]
    assert even.confirmed is False


@pytest.mark.parametrize(
    ("technique", "change", "same", "worse"),
    [
        ("Low precision", {"precision": "bf16"}, False, True),
        ("Gradient accumulation", {"accumulation": 4}, False, True),
        ("Gradient checkpointing", {"checkpointing": "block"}, True, False),
        ("LoRA", {"method": "lora"}, False, True),
    ],
)
def test_what_is_learnt_is_judged_by_the_held_out_loss(
    technique: str, change: dict[str, Any], same: bool, worse: bool
) -> None:
    case = PLAIN.but(**change)
    for loss, confirmed in ((2.0, same), (2.2, worse)):
        verdict = found(result(PLAIN), result(case, 1.0, loss))[technique, "held-out loss"]
        assert verdict.confirmed is confirmed, verdict.figure
    nothing = found(result(PLAIN, 1.0, None), result(case, 1.0, None))
    assert nothing[technique, "held-out loss"].confirmed is None


def test_a_pair_differs_in_nothing_else() -> None:
    other = PLAIN.but(method="lora", checkpointing="block")
    marks = {v.confirmed for v in found(result(PLAIN), result(other)).values()}
    assert marks == {None}


def test_the_grid_is_every_combination_once(tmp_path: Any) -> None:
    options = AblateOptions(output_dir=tmp_path / "out", rows=4)
    assert check_ablate(options) == []
    cases = grid(options)
    assert len(cases) == len(set(cases)) == 2 * 2 * 3 * 2
    assert {case.micro_batch * case.accumulation for case in cases} == {4}


def test_what_cannot_be_measured_is_refused(tmp_path: Any) -> None:
    options = AblateOptions(
        output_dir=tmp_path, method=("lora", "loar"), precision=("bf16", "bf16"), rows=1, steps=0
    )
    problems = " ".join(check_ablate(options))
    for word in ("'loar'; did you mean lora", "--precision: ", "--rows: ", "--steps: "):
        assert word in problems, problems
