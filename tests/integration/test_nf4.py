"""Runs with `--base nf4` as a user makes them: stopped and gone on with bit for bit, on shards and
on several ranks what one process trains, and what a run on the dense weights trains that the four
bits stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama.base.nf4 import NF4
from llama.weights.as_held import AsHeld
from llama.weights.open_model import open_model
from tests.integration.test_resume import adapter, assert_the_same
from tests.support.closeness import SMALL_MODEL, TRAINED, distance
from tests.support.model_files import State, random_state, transformers_model
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import CONFIG, launched, succeeded
from tests.support.tokenizer_files import write_tokenizer_json

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.numeric]

BF16, FP32 = settings("zero1-bf16"), settings("zero1-fp32")
STEADY = 32
"""Of so many weights one after another one is as large as any: whichever 64 make a block, whole or
on a shard, their absmax is the same, and what is rounded is the same too."""
LARGEST = 0.25


def steady() -> State:
    state = random_state(CONFIG)
    for name, tensor in state.items():
        if tensor.dim() == 2:
            tensor.clamp_(-LARGEST, LARGEST)[:, ::STEADY] = LARGEST
            assert tensor.shape[1] % STEADY == 0, name
    return state


def write(folder: Path, state: State) -> Path:
    transformers_model(CONFIG, state.__getitem__).save_pretrained(folder)
    write_tokenizer_json(folder)
    return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """In bf16 a run that was never stopped and one that was, after step 3, each way to recompute;
    in float32 one on one rank, one on the dense weights, and some on two ranks."""
    made = Case(
        tmp_path_factory.mktemp("nf4"),
        lora=("--lora.targets", "wq,wo,w1,w2", "--lora.dropout", "0", "--base", "nf4"),
    )
    write(made.model, steady())
    source = AsHeld(open_model(str(made.model)).reader, NF4, 1, torch.device("cpu"))
    dense = write(made.folder / "dense", {name: source.read(name) for name in source.names()})
    made.add("straight", BF16, None)
    for kept in ("none", "ffn"):
        made.add(f"stopped-{kept}", BF16, 3, "--checkpointing", kept)
        made.add(f"stopped-{kept}", BF16, None)
    made.add("one", FP32, None, "--epochs", "5")  # 20 steps
    made.add("dense", FP32, None, "--epochs", "5", "--base", "half", "--model", str(dense))
    made.add("half", FP32, None, "--epochs", "5", "--base", "half")
    made.go()
    made.add("shards", FP32, 3, "--epochs", "5", "--tensor_parallel", "2")
    made.add("shards", FP32, None, "--epochs", "5", "--tensor_parallel", "2")
    made.go(ranks=2)
    made.add("ranks", settings("zero2-fp32", 1), None, "--epochs", "5")
    made.go(ranks=2)
    return made


@pytest.mark.parametrize("kept", ["none", "ffn"])
def test_a_stop_changes_nothing(kept: str, case: Case) -> None:
    """Nor what is computed again."""
    assert_the_same(case.out(f"stopped-{kept}"), case.out("straight"))


@pytest.mark.parametrize("other", ["dense", "shards", "ranks"])
def test_the_same_adapter_is_trained(other: str, case: Case) -> None:
    found, one = (load_file(adapter(case.out(name))) for name in (other, "one"))
    assert distance(found, one) <= TRAINED
    losses = [summary(case, name)["eval_loss"] for name in (other, "one")]
    assert losses[0] == pytest.approx(losses[1], rel=TRAINED)


def test_it_is_not_that_of_the_weights_as_they_were(case: Case) -> None:
    half, one = (load_file(adapter(case.out(name))) for name in ("half", "one"))
    assert distance(half, one) > 100 * TRAINED


def test_what_a_run_was_is_said(case: Case) -> None:
    """In its record and on its adapter's card; and its model is the one that was named."""
    out = case.out("one")
    assert json.loads((out / "run.json").read_text())["options"]["base"] == "nf4"
    assert "nf4" in (out / "adapter" / "README.md").read_text()
    records = [json.loads((case.out(n) / "run.json").read_text()) for n in ("one", "half")]
    assert records[0]["model_fingerprint"] == records[1]["model_fingerprint"]


def test_a_run_is_not_gone_on_with_on_another_form(case: Case) -> None:
    again = case.argv("one", FP32, "--epochs", "6", "--base", "half")
    done = launched("python", "train.py", *again)
    assert done.returncode == 2
    assert "base: the run began with 'nf4', and is now given 'half'" in done.stderr


@pytest.mark.parametrize("base", ["nf4", "half"])
def test_the_adapter_is_evaluated_on_either(base: str, case: Case) -> None:
    """On the base that it was trained over, its loss is what the run said."""
    given = ("--adapter", case.out("one"), "--data", case.held_out, "--seq_len", 96)
    more = ("--precision", "float32", "--base", base, "--json")
    found = succeeded(launched("python", "evaluate.py", *map(str, (*given, *more))))
    loss = summary(case, "one")["eval_loss"]
    near = abs(found["loss"] - loss) / loss
    assert near <= SMALL_MODEL if base == "nf4" else SMALL_MODEL < near < 0.1


def summary(case: Case, name: str) -> dict[str, float]:
    return json.loads((case.out(name) / "summary.json").read_text())
