"""`--method full` as a process: stopped and taken up again, at each ZeRO stage and at another
topology; its checkpoints, which every rank writes a part of; and the model that it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama.commands.export.command import export
from llama.settings import ExportOptions
from llama.weights.open_model import open_model
from tests.integration.test_resume import metrics, summary
from tests.support.closeness import TRAINED, distance
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import CONFIG, launched, read_lines, succeeded, write_json

pytestmark = [pytest.mark.slow, pytest.mark.long]
FULL = ("--method", "full")


def model(out: Path) -> Path:
    return out / "model" / "model.safetensors"


def parts(out: Path) -> dict[str, bytes]:
    folder = out / "checkpoints" / f"step-{STEPS}"
    return {path.name: path.read_bytes() for path in folder.glob("rank-*.safetensors")}


def assert_the_same(out: Path, straight: Path, ranks: int) -> None:
    assert metrics(out) == metrics(straight)
    assert summary(out) == summary(straight)
    assert model(out).read_bytes() == model(straight).read_bytes()
    assert (out / "samples.jsonl").read_bytes() == (straight / "samples.jsonl").read_bytes()
    assert len(parts(out)) == ranks and parts(out) == parts(straight)


def cut_up(kind: str, accumulation: int) -> dict[str, Any]:
    document = settings(kind, accumulation)
    if document["zero_optimization"]["stage"] == 3:
        document["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return document


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Runs on two ranks of each stage, straight and stopped, of one twice; one on one rank."""
    made = Case(tmp_path_factory.mktemp("full"), lora=FULL)
    for kind in KINDS:
        made.add(kind, cut_up(kind, 1), None)
        for stop_at in (3, 2, None) if kind == "zero3-fp32" else (3, None):
            made.add(f"{kind}-stopped", cut_up(kind, 1), stop_at, "--save_every", "2")
    made.go(2)  # groups are made once in the life of a process
    made.add("shards", settings("zero1-bf16"), None, "--tensor_parallel", "2")
    made.add("shards-stopped", settings("zero1-bf16"), 3, "--tensor_parallel", "2")
    made.add("shards-stopped", settings("zero1-bf16"), None, "--tensor_parallel", "2")
    made.go(2)
    made.add("alone", settings("zero1-fp32"), None)
    made.go()
    return made


KINDS = ("zero0-fp32", "zero1-fp32", "zero2-bf16", "zero3-fp32", "zero3-bf16")


@pytest.mark.parametrize("kind", [*KINDS, "shards"])
def test_a_run_that_was_stopped_is_the_run_that_was_not(kind: str, case: Case) -> None:
    assert_the_same(case.out(f"{kind}-stopped"), case.out(kind), 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "fp32" in kind])
def test_two_ranks_train_what_one_does(kind: str, case: Case) -> None:
    ours, theirs = case.out(kind), case.out("alone")
    assert distance(load_file(model(ours)), load_file(model(theirs))) <= TRAINED
    losses = [[m["loss"] for m in metrics(out) if "loss" in m] for out in (ours, theirs)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=TRAINED)


def test_another_topology_on_the_way(case: Case) -> None:
    """Two steps each on one rank, on two with ZeRO-3, on two shards, and on one again."""
    case.add("turns", settings("zero1-fp32"), 2)
    case.go()
    case.add("turns", cut_up("zero3-fp32", 1), 2)
    case.go(2)
    case.add("turns", settings("zero2-fp32"), 2, "--tensor_parallel", "2")
    case.go(2)
    case.add("turns", settings("zero0-fp32"), None)
    case.go()
    ours, theirs = case.out("turns"), case.out("alone")
    assert distance(load_file(model(ours)), load_file(model(theirs))) <= TRAINED
    losses = [[m["loss"] for m in metrics(out) if "loss" in m] for out in (ours, theirs)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=TRAINED)


def test_what_the_record_says(case: Case) -> None:
    out = case.out("zero3-fp32")
    record, ended = (json.loads((out / f"{n}.json").read_text()) for n in ("run", "summary"))
    count = CONFIG.parameter_count()
    assert record["trainable_parameters"] == record["total_parameters"] == count
    assert record["trainable_share"] == 1.0
    assert ended["optimizer_state_bytes"] == 12 * count // 2, "this rank's share, and no more"
    assert not (out / "adapter").exists()


def test_the_model_is_evaluated_as_the_run_did(case: Case) -> None:
    out = case.out("zero1-fp32")
    options = ("--model", out / "model", "--data", case.held_out, "--template", "chatml")
    more = ("--precision", "float32", "--seq_len", "96", "--json")
    found = succeeded(launched("python", "evaluate.py", *options, *more))
    last = [line["eval_loss"] for line in read_lines(out / "metrics.jsonl") if "eval_loss" in line]
    assert found["loss"] == pytest.approx(last[-1], rel=TRAINED)
    said = json.loads((out / "model" / "training.json").read_text())
    assert said["method"] == "full" and said["losses"]["eval_loss"] == last[-1]
    assert "library_name: transformers" in (out / "model" / "README.md").read_text()


def test_the_model_is_exported_as_any_other(case: Case, tmp_path: Path) -> None:
    trained = case.out("zero3-fp32") / "model"
    expected = open_model(str(trained)).reader
    for format_ in ("gguf", "meta"):
        options: dict[str, Any] = {"format": format_, "output_dir": tmp_path / format_}
        assert export(ExportOptions(model=str(trained), **options)) == 0
        found = open_model(str(tmp_path / format_)).reader
        for name in expected.names():
            assert torch.equal(found.read(name).float(), expected.read(name).float()), name


def test_a_full_disk_leaves_what_was_saved(case: Case) -> None:
    two = settings("zero1-fp32", 1)
    case.add("full-disk", two, None, "--save_every", "1", full_at=3, limit=20_000)
    case.add("full-disk", two, None)
    said = case.go(ranks=2)
    for rank in (0, 1):
        (line,) = (line for line in said.splitlines() if f"rank {rank} reports" in line)
        assert "step-3: the checkpoint could not be saved: File too large" in line
    assert f"going on from {case.out('full-disk')}/checkpoints/step-2" in said
    assert_the_same(case.out("full-disk"), case.out("zero1-fp32"), 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_verify_agrees(ranks: int, case: Case, tmp_path: Path) -> None:
    document = cut_up("zero3-bf16", 2)
    options = ("--deepspeed", write_json(tmp_path / "ds.json", document), *FULL)
    more = ("--model", case.model, "--seq_len", "48", "--steps", "3", "--json")
    found = succeeded(launched("torchrun", "verify.py", *options, *more, ranks=ranks))
    assert found["agrees"], found
