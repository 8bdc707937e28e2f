"""Each way to adapt as a user runs it: stopped and gone on with bit for bit, on shards what one
process trains, read by PEFT with the same logits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration.test_resume import adapter, assert_the_same
from tests.parity.test_adapter import LENGTH, our_logits, their_logits
from tests.support.closeness import SMALL_MODEL, TRAINED, assert_close, difference, distance
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.numeric]

VARIANTS: dict[str, tuple[str, ...]] = {
    "rslora": ("--lora.scale", "alpha/sqrt(r)"),
    "loraplus": ("--lora.b_lr_ratio", "8"),
    "dora": ("--lora.kind", "dora"),
    "pissa": ("--lora.start", "pissa"),
}
BF16, FP32 = settings("zero1-bf16"), settings("zero1-fp32")
ZERO3 = settings("zero3-fp32", 1)
ZERO3["zero_optimization"]["stage3_param_persistence_threshold"] = 0
TWO: dict[str, tuple[Any, ...]] = {
    "TP": (FP32, "--tensor_parallel", "2"),
    "ZeRO-3": (ZERO3,),
}
"""Ways to use two ranks."""
ROUNDED = 2.0**-9
"""What bf16 may take from a number."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of each variant a run that was never stopped and one that was, after step 3, in bf16; in
    float32 one on one rank, one that begins with its adapter, and one on two ranks each way,
    stopped too."""
    made = Case(
        tmp_path_factory.mktemp("variants"),
        lora=("--lora.targets", "wq,wo,w2", "--lora.dropout", "0", "--lora.rank", "4"),
    )
    for name, more in VARIANTS.items():
        made.add(f"{name}-bf16", BF16, None, *more)
        made.add(f"{name}-bf16-stopped", BF16, 3, *more)
        made.add(f"{name}-bf16-stopped", BF16, None, *more)
        made.add(f"{name}-fp32", FP32, None, *more)
        begin = ("--init_adapter", str(made.out(f"{name}-fp32")), "--max_steps", "1")
        made.add(f"{name}-on", FP32, None, *begin, "--lora.targets", "-", "--lora.rank", "-")
    made.go()
    for way, (given, *ranks) in TWO.items():
        for name, more in VARIANTS.items():
            made.add(f"{name}-{way}", given, 3, *more, *ranks)
            made.add(f"{name}-{way}", given, None, *more, *ranks)
        if way == "ZeRO-3":
            made.add("loraplus-ZeRO-2", settings("zero2-fp32", 1), None, *VARIANTS["loraplus"])
        made.go(ranks=2)
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stop_changes_nothing(name: str, case: Case) -> None:
    assert_the_same(case.out(f"{name}-bf16-stopped"), case.out(f"{name}-bf16"))


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_what_one_does(name: str, way: str, case: Case) -> None:
    """Though they were stopped on the way."""
    two, one = (load_file(adapter(case.out(f"{name}-{on}"))) for on in (way, "fp32"))
    assert distance(two, one) <= TRAINED


def test_groups_of_two_rates_are_parted_over_ranks(case: Case) -> None:
    two, one = (load_file(adapter(case.out(f"loraplus-{on}"))) for on in ("ZeRO-2", "fp32"))
    assert distance(two, one) <= TRAINED


@pytest.mark.parametrize("name", VARIANTS)
def test_peft_reads_what_is_written(name: str, case: Case) -> None:
    folder = case.out(f"{name}-fp32") / "adapter"
    tokens = torch.randint(0, 261, (LENGTH,), generator=torch.Generator().manual_seed(0))
    ours, theirs = (f(case.model, folder, tokens) for f in (our_logits, their_logits))
    assert difference(our_logits(case.model, None, tokens), ours) > 0.01, "it has not trained"
    assert_close(ours, theirs, SMALL_MODEL)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_begins_at_its_base(name: str, case: Case) -> None:
    """In bf16 too, to the last digit: the loss before any step is that of each other variant. Of
    DoRA within the rounding of its lengths."""
    before = [
        json.loads((case.out(f"{each}-bf16") / "summary.json").read_text())["eval_loss_before"]
        for each in (name, "rslora")
    ]
    rounded = ROUNDED if name == "dora" else 0.0
    assert before[0] == pytest.approx(before[1], rel=rounded, abs=0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_another_run_begins_with_what_it_gave(name: str, case: Case) -> None:
    ended, begun = (
        json.loads((case.out(f"{name}-{run}") / "summary.json").read_text())
        for run in ("fp32", "on")
    )
    assert begun["eval_loss_before"] == pytest.approx(ended["eval_loss"], rel=SMALL_MODEL)


def test_both_rates_are_told_and_rise_and_fall_together(case: Case) -> None:
    out = case.out("loraplus-bf16")
    steps = [line for line in read_lines(out / "metrics.jsonl") if "loss" in line]
    rates = [line["learning_rate"] for line in steps]
    assert len(set(rates)) > 2, "the schedule moves"
    assert [line["learning_rate_b"] for line in steps] == pytest.approx([8 * r for r in rates])
    alone = read_lines(case.out("rslora-bf16") / "metrics.jsonl")
    assert not any("learning_rate_b" in line for line in alone)
    events = EventAccumulator(str(out / "tensorboard" / "train")).Reload()
    drawn = [event.value for event in events.Scalars("train/learning_rate_b")]
    assert drawn == pytest.approx([line["learning_rate_b"] for line in steps], rel=1e-6)
