"""A vocabulary need not divide by the ranks: what fills up their shares is felt nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.parity.odd_vocabulary import VOCABULARIES
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import CONFIG, read_lines, torchrun_module, write_model

pytestmark = pytest.mark.slow
LIMIT = 1e-5
"""Relative, in float32: the ranks sum in another order."""
TRAINED = 1e-4
"""The same after eight steps."""


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_together_are_one_alone(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = torchrun_module("tests.parity.odd_vocabulary", "--out", out, ranks=ranks)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    assert [row["vocab_size"] for row in rows] == [size for size in VOCABULARIES for _ in range(2)]
    for row in rows:
        assert max(row["logits"], row["loss"], row["gradient"]) < LIMIT, row
        assert row["same_text"], row
        assert row["real_rows"] == row["logits_width"] == row["vocab_size"], row


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of a tied embedding, whose filled-up share is read in two places."""
    case = Case(tmp_path_factory.mktemp("odd"))
    write_model(case.folder / "odd", replace(CONFIG, vocab_size=265, tied_embedding=True))
    case.model = case.folder / "odd"
    case.add("straight", settings("zero1-fp32"), None)
    case.add("degrees", settings("zero1-fp32"), 3)
    case.go()
    return case


def adapter(out: Path) -> dict[str, Any]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.mark.long
def test_a_run_goes_on_at_any_degree(case: Case) -> None:
    """Straight on one rank; and three steps on one, three on two shards, the last two on four."""
    kind = settings("zero1-fp32")
    case.add("degrees", kind, 3, "--tensor_parallel", "2")
    case.go(ranks=2)
    case.add("degrees", kind, None, "--tensor_parallel", "4")
    case.go(ranks=4)
    straight, out = (case.out(name) for name in ("straight", "degrees"))
    losses, expected = (
        [line["loss"] for line in read_lines(path / "metrics.jsonl") if "loss" in line]
        for path in (out, straight)
    )
    assert len(losses) == STEPS and losses == pytest.approx(expected, rel=TRAINED)
    found, wanted = adapter(out), adapter(straight)
    assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    apart = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
    assert apart < TRAINED
    assert (out / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()


@pytest.mark.long
def test_the_base_cut_up_over_both(case: Case) -> None:
    """ZeRO-3 parts the filled-up shares once more."""
    case.add("both", settings("zero3-fp32", 1), None, "--tensor_parallel", "2")
    case.go(ranks=4)
    found, wanted = adapter(case.out("both")), adapter(case.out("straight"))
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < TRAINED
