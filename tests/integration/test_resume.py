"""A run that was stopped and taken up again is the run that was not, bit for bit on one topology
and within rounding on another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.closeness import TRAINED, distance
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import read_lines

pytestmark = pytest.mark.slow

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes", "mfu"}
FOUR_EPOCHS = ("--epochs", "4")
"""Of which four ranks make `STEPS` too."""


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = read_lines(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def summary(out: Path) -> dict[str, Any]:
    kept = ("status", "steps", "epoch_losses", "eval_loss", "eval_loss_before")
    document = json.loads((out / "summary.json").read_text())
    return {key: document[key] for key in kept}


def adapter(out: Path) -> Path:
    return out / "adapter" / "adapter_model.safetensors"


def assert_within_rounding(out: Path, straight: Path) -> None:
    assert len(metrics(out)) == len(metrics(straight))
    for ours, theirs in zip(metrics(out), metrics(straight), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            near = value if value is None else pytest.approx(value, rel=TRAINED)
            assert ours[key] == near, (key, ours, theirs)
    assert distance(load_file(adapter(out)), load_file(adapter(straight))) <= TRAINED


def assert_the_same(out: Path, straight: Path) -> None:
    assert metrics(out) == metrics(straight)
    assert summary(out) == summary(straight)
    assert adapter(out).read_bytes() == adapter(straight).read_bytes()
    for name in ("samples.jsonl", "norms.jsonl"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
    newest = f"checkpoints/step-{STEPS}/optimizer.safetensors"
    assert (out / newest).read_bytes() == (straight / newest).read_bytes()


def straight_run(case: Case) -> Path:
    """The run that was never stopped; made by the next `go`, once."""
    if not case.out("straight").exists():
        case.add("straight", settings("zero1-fp32"), None)
    return case.out("straight")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("resume"))


def test_a_run_resumed_at_every_step_is_the_same(case: Case) -> None:
    """Stopped once at each step k, mid-epoch and at its end; and once after every single step."""
    kind = settings("zero1-fp32")
    straight = straight_run(case)
    for k in range(1, STEPS + 1):
        case.add(f"at-{k}", kind, k)
        case.add(f"at-{k}", kind, None)
    for _ in range(STEPS):
        case.add("always", kind, 1)
    case.add("always", kind, None)
    said = case.go()
    assert [line["step"] for line in metrics(straight) if "loss" in line] == [*range(1, STEPS + 1)]
    for name in [*(f"at-{k}" for k in range(1, STEPS + 1)), "always"]:
        assert_the_same(case.out(name), straight)
    assert f"going on from {case.out('at-3')}/checkpoints/step-3: step 3 of {STEPS}" in said
    resumed = json.loads((case.out("always") / "run.json").read_text())["resumed"]
    assert [entry["step"] for entry in resumed] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize(
    "kind",
    [
        "zero0-fp32",
        "zero1-bf16",
        pytest.param("zero2-bf16", marks=pytest.mark.long),
        pytest.param("zero3-bf16", marks=pytest.mark.long),
    ],
)
def test_at_every_stage_and_precision(kind: str, case: Case) -> None:
    case.add(f"{kind}", settings(kind), None)
    for k in (3, 6):
        case.add(f"{kind}-{k}", settings(kind), k, "--checkpointing", "none")
        case.add(f"{kind}-{k}", settings(kind), None)
    case.go()
    for k in (3, 6):
        assert_the_same(case.out(f"{kind}-{k}"), case.out(kind))


@pytest.mark.long
@pytest.mark.parametrize(
    ("other", "more"),
    [("zero1-fp32", ()), ("zero1-fp32", ("--tensor_parallel", "2")), ("zero3-fp32", ())],
    ids=["DP 1-2-1", "TP 1-2-1", "ZeRO 1-3-1 and DP 1-2-1"],
)
def test_another_topology_on_the_way(other: str, more: tuple[str, ...], case: Case) -> None:
    """Three steps on one rank, three on two in the other way, the last two as at first."""
    plain, ranks = "zero1-fp32", 2
    name = f"{other}{'-'.join(more)}-on-the-way"
    copies = 1 if more else ranks
    straight = straight_run(case)
    case.add(name, settings(plain), 3)
    case.go()
    case.add(name, settings(other, 2 // copies), 3, *more)
    said = case.go(ranks)
    assert "it equals the run that was begun within rounding, not bit for bit" in said
    case.add(name, settings(plain), None)
    case.go()
    out = case.out(name)
    assert_within_rounding(out, straight)


@pytest.mark.long
def test_a_shared_base_goes_on_from_a_whole_one_and_back(case: Case) -> None:
    """The base is in no checkpoint: which rank held what of it changes nothing, to the last digit,
    nor does it in the evaluations and the sample answers, in which all ranks take part."""
    kind, shared = settings("zero1-fp32", 1), ("--shard_base", "true")
    case.add("two-ranks", kind, None)
    for name, first, then in (("to-whole", shared, ()), ("to-shared", (), shared)):
        case.add(name, kind, 3, *first)
        case.add(name, kind, None, *then)
    case.add("shared", kind, 6, "--checkpointing", "none", *shared)
    case.add("shared", kind, None, *shared)
    case.go(ranks=2)
    for name in ("to-whole", "to-shared", "shared"):
        assert_the_same(case.out(name), case.out("two-ranks"))


@pytest.mark.long
def test_a_base_shared_by_twos_goes_on_by_all_and_a_whole_one_by_twos(case: Case) -> None:
    """Four ranks, to the last digit; the groups are those of numbers in a row."""
    kind, twos, every = settings("zero1-fp32", 1), ("--shard_base", "2"), ("--shard_base", "all")
    case.add("four-ranks", kind, None, *FOUR_EPOCHS)
    for name, first, then in (("to-all", twos, every), ("to-twos", (), twos)):
        case.add(name, kind, 3, *FOUR_EPOCHS, *first)
        case.add(name, kind, None, *FOUR_EPOCHS, *then)
    case.go(ranks=4)
    for name in ("to-all", "to-twos"):
        assert_the_same(case.out(name), case.out("four-ranks"))


def rate(step: int, total: int) -> float:
    """That step `step`, counted from 1, is taken with: DeepSpeed's WarmupDecayLR as
    `settings` has it. The schedule is asked for a rate only after a step, so that the first two
    are taken with the least."""
    highest, warmup = 5e-3, 2
    lowest = highest / warmup
    if (after := step - 2) < 0:
        return lowest
    rising = math.log(after + 1) / math.log(warmup)
    share = rising if after < warmup else max(0.0, (total - after) / max(1, total - warmup))
    return lowest + (highest - lowest) * share


def rates(out: Path) -> list[float]:
    return [line["learning_rate"] for line in metrics(out) if "loss" in line]


@pytest.mark.long
def test_each_step_is_logged_with_the_rate_it_was_taken_with(case: Case) -> None:
    """Of a run that is then extended, too: from its first step on it follows the new schedule. And
    a run that was seen to train is not watched again."""
    kind, first = settings("zero1-fp32"), STEPS // 2
    case.add("extended", kind, None, "--epochs", "1")
    assert case.go().count("hooks on gradients: 0") == 0
    assert rates(case.out("extended")) == pytest.approx([rate(k, first) for k in (1, 2, 3, 4)])
    case.add("extended", kind, None, "--epochs", "2")
    said = case.go()
    expected = [rate(k, first if k <= first else STEPS) for k in range(1, STEPS + 1)]
    assert rates(case.out("extended")) == pytest.approx(expected)
    assert f"from here on the learning rate follows the schedule of {STEPS}" in said
    assert "hooks on gradients: 0" in said


@pytest.mark.long
def test_a_full_disk(case: Case) -> None:
    """In the save at step 3, then in the metrics of step 4: both ranks say so and end, what was
    saved before is whole, and the run goes on from there when there is room."""
    two = settings("zero1-fp32", 1)
    case.add("never-full", two, None)
    case.add("full", two, None, "--save_every", "1", full_at=3, limit=20_000)
    case.add("full", two, None, "--save_every", "2", full_at=1, limit=1)
    case.add("full", two, None, "--save_every", "1")
    said = case.go(ranks=2)
    for rank in (0, 1):
        saving, writing = (line for line in said.splitlines() if f"rank {rank} reports" in line)
        assert "step-3: the checkpoint could not be saved: File too large" in saving
        assert "metrics cannot be written" in writing and "File too large" in writing
    assert said.count(f"going on from {case.out('full')}/checkpoints/step-2: step 2 of") == 2
    assert_the_same(case.out("full"), case.out("never-full"))
