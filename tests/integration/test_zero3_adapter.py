"""ZeRO-3 on two ranks that cuts up the adapter too, a large one: every command that meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llama.model.config import LINEARS
from tests.integration.test_resume import adapter, assert_the_same
from tests.support.closeness import TRAINED, assert_close, distance
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import CONFIG, launched, read_lines, succeeded, write_json

pytestmark = [pytest.mark.slow, pytest.mark.long]
RANK, RANKS = 64, 2
LORA = (
    *("--lora.rank", str(RANK), "--lora.alpha", "64", "--lora.dropout", "0.1"),
    *("--lora.targets", ",".join(LINEARS)),
)


def cut_up() -> dict[str, Any]:
    document = settings("zero3-fp32", 1)
    document["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return document


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three runs: straight; stopped in the middle of an epoch and gone on with; and at ZeRO-1."""
    made = Case(tmp_path_factory.mktemp("zero3"), lora=LORA)
    made.add("straight", cut_up(), None)
    made.add("stopped", cut_up(), 3)
    made.add("stopped", cut_up(), None)
    made.add("zero1", settings("zero1-fp32", 1), None)
    made.go(RANKS)
    return made


def test_the_optimizer_holds_this_ranks_share_and_no_more(case: Case) -> None:
    shapes = [CONFIG.linear_shape(name) for name in LINEARS]
    elements = CONFIG.n_layers * sum(RANK * (rows + columns) for rows, columns in shapes)
    summary = json.loads((case.out("straight") / "summary.json").read_text())
    assert summary["optimizer_state_bytes"] == 12 * elements // RANKS


def test_a_run_that_was_stopped_is_the_run_that_was_not(case: Case) -> None:
    assert_the_same(case.out("stopped"), case.out("straight"))


def test_it_trains_the_adapter_that_zero_1_does(case: Case) -> None:
    ours, theirs = (case.out(name) for name in ("straight", "zero1"))
    assert distance(load_file(adapter(ours)), load_file(adapter(theirs))) <= TRAINED
    losses = [
        [line["loss"] for line in read_lines(out / "metrics.jsonl") if "loss" in line]
        for out in (ours, theirs)
    ]
    assert len(losses[0]) > 3
    assert_close(losses[0], losses[1], TRAINED)


def test_its_adapter_answers_as_the_other_does(case: Case) -> None:
    def answer(name: str) -> str:
        options = ("--model", case.model, "--adapter", case.out(name) / "adapter")
        more = ("--template", "chatml", "--precision", "float32", "--max_new_tokens", "24")
        asked = ("--prompt", "add 3 to 9", "--json")
        return succeeded(launched("python", "generate.py", *options, *more, *asked))["text"]

    assert answer("straight") == answer("zero1") != ""


def test_verify_agrees(case: Case, tmp_path: Path) -> None:
    settings_file = write_json(tmp_path / "ds.json", cut_up())
    options = ("--deepspeed", settings_file, "--model", case.model, *LORA, "--json")
    more = ("--seq_len", "48", "--steps", "3")
    assert succeeded(launched("torchrun", "verify.py", *options, *more, ranks=RANKS))["agrees"]
