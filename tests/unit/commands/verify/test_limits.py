"""The limits that `verify` holds a run to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llama.commands.verify import command, report
from llama.commands.verify.report import MARGIN, TOLERANCES, WIDEST, Outcome

AT_FIRST = {"a": torch.zeros(4)}
ALONE = Outcome([2.0], [1.0], {"a": torch.ones(4)}, AT_FIRST)


def off_by(loss: float, norm: float, adapter: float) -> Outcome:
    """An outcome that deviates from ALONE by so much."""
    return Outcome([2.0 + 2.0 * loss], [1.0 + norm], {"a": torch.ones(4) + adapter}, AT_FIRST)


def limits(nudged: Outcome | None, precision: str = "fp32", **of_outcome: Any) -> Any:
    outcome = replace(ALONE, **of_outcome)
    return report._limits(outcome, replace(ALONE, nudged=nudged), precision)


def test_a_steady_model_is_held_to_the_table() -> None:
    assert limits(off_by(1e-8, 1e-8, 1e-6)) == TOLERANCES["fp32"] == limits(None)


def test_a_model_that_magnifies_roundings_is_held_to_what_they_do_to_it_alone() -> None:
    found = limits(off_by(2e-6, 1.5e-5, 3e-3))
    assert found.loss == pytest.approx(MARGIN * 2e-6, rel=1e-3)
    assert found.grad_norm == pytest.approx(MARGIN * 1.5e-5, rel=1e-3)
    assert found.adapter == pytest.approx(MARGIN * 3e-3, rel=1e-3)


def test_no_sensitivity_excuses_everything() -> None:
    assert limits(off_by(0.1, 0.1, 0.5)) == WIDEST
    assert limits(off_by(float("nan"), float("nan"), float("nan"))) == TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_adapter_that_hardly_moved_is_seen(precision: str) -> None:
    """In half precision the adapter's own limit holds of one that has not moved at all."""
    hardly = replace(ALONE, adapter={"a": torch.full((4,), 0.05)})
    turned = replace(ALONE, adapter={"a": torch.tensor([1.0, 1.0, 1.0, -1.0])})
    seen = {
        name: [
            row.what
            for row in report._rows(outcome, ALONE, TOLERANCES[precision])
            if not row.agrees
        ]
        for name, outcome in (("hardly", hardly), ("turned", turned), ("alone", ALONE))
    }
    in_float32 = ["updated adapter"] if precision == "fp32" else []
    assert seen == {"hardly": [*in_float32, "distance moved"], "turned": in_float32, "alone": []}


def test_a_distance_is_from_where_each_began() -> None:
    """In half precision a beginning is rounded, by more than a low rate moves it."""
    rounded = {name: value + 0.5 for name, value in AT_FIRST.items()}
    moved = replace(ALONE, adapter={"a": torch.ones(4) + 0.5}, initial=rounded)
    (row,) = (r for r in report._rows(moved, ALONE, TOLERANCES["bf16"]) if "distance" in r.what)
    assert row.agrees and row.deviation == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_and_eight_bits_have_limits_of_their_own(precision: str) -> None:
    apart = off_by(2e-6, 1.5e-5, 3e-3)
    assert limits(apart, precision) == TOLERANCES[precision]
    assert limits(apart, rounds_input=True) == TOLERANCES["bf16"]


def test_a_nudge_is_some_roundings_of_each_value() -> None:
    values = torch.nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    before = values.detach().clone()
    command._nudge([values], command.NUDGE)
    change = ((values.detach() - before) / before).abs()
    rounding = 2.0**-24
    assert float(change.max()) <= command.NUDGE + 2 * rounding
    assert float((change > 0).float().mean()) > 0.8
