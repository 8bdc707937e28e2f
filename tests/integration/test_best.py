"""The best of a run is what it gives, whatever becomes of the run: stopped, ended early, gone on
with in another folder or on another topology.

The held-out loss of these runs falls and rises again: lowest at steps 1, 3 and 7 of 8 so far.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llama.commands.evaluate.command import evaluate
from llama.errors import UserError
from llama.settings import EvaluateOptions
from llama.settings.options import parse
from tests.integration.test_resume import adapter, metrics
from tests.support.closeness import SMALL_MODEL, TRAINED, distance
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import write_json

pytestmark = pytest.mark.slow

KIND = settings("zero1-fp32")
BEST = 7
EARLY = ("--early_stop", "3")
FULL = ("--method", "full", "--lora.targets", "-", "--lora.dropout", "-")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """All runs of one rank; `said` of them in `said.txt`."""
    made = Case(tmp_path_factory.mktemp("best"))
    rows = ((f"add {i} to {i * i}", f"{i + i * i} The cat") for i in (20, 21, 22))
    write_json(made.held_out, [{"prompt": prompt, "completion": text} for prompt, text in rows])
    steep = ("--override", "optimizer.params.lr=5e-2")
    every = (*steep, "--eval_every", "1")

    def add(name: str, stop_at: int | None, *more: str) -> None:
        made.add(name, KIND, stop_at, *every, *more)

    add("all", None, "--save_every", "1", "--keep", "20")
    add("kept", None, "--keep", "1")
    for stop_at in (3, 2, 2, None):
        add("stopped", stop_at, "--keep", "1")
    for more in (EARLY, EARLY, ("--early_stop", "4"), ()):
        add("early", None, "--keep", "1", *more)
    branched = ("--resume", str(made.out("all") / "checkpoints" / "step-5"))
    add("branch", 1, *branched)
    add("not kept", None, "--best", "false")
    made.add("none held out", KIND, None, *steep, "--eval_data", "-")
    split = ("--eval_data", "-", "--eval_split", "0.3", "--max_steps", "2")
    made.add("split", KIND, None, *steep, *split)
    add("turns", 4, "--keep", "1")
    add("full", None, "--max_steps", "3", *FULL)
    (made.folder / "said.txt").write_text(made.go())
    return made


def summary(out: Path) -> dict[str, Any]:
    document = json.loads((out / "summary.json").read_text())
    times = ("seconds", "tokens_per_second", "peak_memory_bytes", "checkpoint_seconds")
    return {key: value for key, value in document.items() if key not in times}


def held_out(out: Path) -> dict[int, float]:
    return {m["step"]: m["eval_loss"] for m in metrics(out) if "eval_loss" in m}


def of_checkpoint(case: Case, step: int) -> bytes:
    """The adapter of that step, by a run that kept every checkpoint."""
    name = f"checkpoints/step-{step}/adapter/adapter_model.safetensors"
    return (case.out("all") / name).read_bytes()


def last(out: Path) -> bytes:
    return (out / "adapter_last" / "adapter_model.safetensors").read_bytes()


def assert_the_same(out: Path, straight: Path) -> None:
    assert metrics(out) == metrics(straight)
    assert summary(out) == summary(straight)
    assert adapter(out).read_bytes() == adapter(straight).read_bytes()
    assert last(out) == last(straight)
    for name in ("samples.jsonl", "norms.jsonl"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
    assert os.listdir(out / "best") == os.listdir(straight / "best")


def test_the_best_is_kept_though_its_checkpoint_is_not(case: Case) -> None:
    out = case.out("kept")
    losses = held_out(out)
    assert [*losses] == [*range(STEPS + 1)]
    assert min(losses, key=lambda step: losses[step]) == BEST, losses
    assert os.listdir(out / "checkpoints") == [f"step-{STEPS}"]
    assert adapter(out).read_bytes() == of_checkpoint(case, BEST)
    assert last(out) == of_checkpoint(case, STEPS)
    ended = summary(out)
    assert (ended["best_step"], ended["best_eval_loss"]) == (BEST, losses[BEST])
    assert (ended["eval_loss_before"], ended["eval_loss"]) == (losses[0], losses[STEPS])
    assert (ended["kept_step"], ended["answers_step"], ended["early_stop"]) == (BEST, BEST, None)
    said = (out / "log.txt").read_text()
    numbers = f"{losses[0]:.4f} before, {losses[BEST]:.4f} at step {BEST} (best, kept), "
    assert f"held-out loss: {numbers}{losses[STEPS]:.4f} at the end" in said
    assert f"adapter (PEFT): {out}/adapter, of step {BEST}; of the last, {out}/adapter_last" in said


def test_an_evaluation_says_after_how_many_epochs_it_was(case: Case) -> None:
    """Also the last one of a run that `--max_steps` ends within an epoch: four steps are one."""
    for name, steps in (("all", STEPS), ("full", 3)):
        found = {m["step"]: m["epoch"] for m in metrics(case.out(name)) if "eval_loss" in m}
        assert found == {step: step / 4 for step in range(steps + 1)}


def test_stopped_and_gone_on_with_it_is_the_same(case: Case) -> None:
    assert_the_same(case.out("stopped"), case.out("kept"))


def test_a_run_ends_early_says_so_and_can_be_gone_on_with(case: Case) -> None:
    """After steps 4, 5 and 6, none of which is below step 3; then it is told that it is finished;
    then goes on, first with more patience than there are evaluations before the next best."""
    out = case.out("early")
    said = (out / "log.txt").read_text()
    assert "stopped early after step 6: 3 evaluations without a lower held-out loss" in said
    finished = f"{out} is finished; to go on, raise --early_stop above 3, or leave it out"
    assert finished in (case.folder / "said.txt").read_text()
    assert f"going on from {out}/checkpoints/step-6: step 6 of {STEPS}" in said
    assert_the_same(out, case.out("kept"))


def test_another_folder_gets_the_best_with_the_checkpoint(case: Case) -> None:
    """Stopped before its first evaluation there."""
    out = case.out("branch")
    assert held_out(out)[3] == min(held_out(out).values())
    assert adapter(out).read_bytes() == of_checkpoint(case, 3)
    assert os.listdir(out / "best") == ["step-3"]


def test_without_best_the_last_is_given(case: Case) -> None:
    out = case.out("not kept")
    assert adapter(out).read_bytes() == of_checkpoint(case, STEPS)
    assert not (out / "adapter_last").exists() and not (out / "best").exists()
    ended = summary(out)
    assert (ended["best_step"], ended["kept_step"]) == (BEST, STEPS)
    assert f"at step {BEST} (best, not kept: --best false), " in (out / "log.txt").read_text()


def test_without_held_out_rows_it_says_that_it_cannot_know(case: Case) -> None:
    out = case.out("none held out")
    assert adapter(out).read_bytes() == of_checkpoint(case, STEPS)
    assert not (out / "adapter_last").exists() and not (out / "best").exists()
    ended = summary(out)
    assert "best_step" not in ended and ended["kept_step"] == STEPS
    assert "cannot be known" in ended["best_unknown"]
    assert f"{ended['best_unknown']}: what the run gives is of its last step, {STEPS}" in (
        (out / "log.txt").read_text()
    )


@pytest.mark.long
def test_another_topology_on_the_way(case: Case) -> None:
    """Four steps on one rank, the rest on two that share the model."""
    case.add(
        *("turns", KIND, None, "--override", "optimizer.params.lr=5e-2", "--eval_every", "1"),
        *("--keep", "1", "--tensor_parallel", "2"),
    )
    case.go(ranks=2)
    ours, theirs = case.out("turns"), case.out("kept")
    assert held_out(ours) == pytest.approx(held_out(theirs), rel=TRAINED)
    assert summary(ours)["best_step"] == summary(ours)["answers_step"] == BEST
    assert distance(load_file(adapter(ours)), load_file(adapter(theirs))) <= TRAINED
    samples = [(out / "samples.jsonl").read_bytes() for out in (ours, theirs)]
    assert samples[0] == samples[1]


def evaluated(case: Case, capsys: pytest.CaptureFixture[str], *words: str) -> float:
    more = ("--data", str(case.held_out), "--template", "chatml", "--seq_len", "96")
    argv = [*words, *more, "--precision", "float32", "--json"]
    assert evaluate(parse(EvaluateOptions, argv, "evaluate.py", "")) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]


def test_evaluate_gives_the_number_of_the_summary(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    out = case.out("kept")
    found = evaluated(case, capsys, "--model", str(case.model), "--adapter", str(out / "adapter"))
    assert found == pytest.approx(summary(out)["best_eval_loss"], rel=SMALL_MODEL)


def test_evaluate_knows_the_rows_that_the_run_held_out(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    """And reads them as the run did, in its precision; a run without any is refused."""

    def loss(out: Path) -> float:
        argv = ["--adapter", str(out), "--json"]
        assert evaluate(parse(EvaluateOptions, argv, "evaluate.py", "")) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]

    out = case.out("kept")
    ended = summary(out)
    assert loss(out) == pytest.approx(ended["best_eval_loss"], rel=SMALL_MODEL)
    last = out / "checkpoints" / f"step-{STEPS}"
    assert loss(last) == pytest.approx(ended["eval_loss"], rel=SMALL_MODEL)
    with pytest.raises(UserError, match="none held out held no rows out"):
        loss(case.out("none held out"))


def test_evaluate_splits_the_rows_off_again(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Other rows than those of --eval_split would have some among them that the run has learnt."""
    out = case.out("split")
    argv = ["--adapter", str(out), "--json"]
    assert evaluate(parse(EvaluateOptions, argv, "evaluate.py", "")) == 0
    said = capsys.readouterr()
    ended = summary(out)
    assert f"held out by {out} by --eval_split 0.3, of {case.rows}" in said.err
    found = json.loads(said.out.splitlines()[-1])["loss"]
    assert found == pytest.approx(ended["best_eval_loss"], rel=SMALL_MODEL)
    cannot = r"held out by --eval_split 0\.3 cannot be found again: "
    with pytest.raises(UserError, match=f"{cannot}they are read in another way"):
        otherwise = [*argv, "--template", "alpaca", "--seq_len", "256"]
        evaluate(parse(EvaluateOptions, otherwise, "evaluate.py", ""))
    before = case.rows.read_bytes()
    case.rows.write_bytes(before + b"\n")
    with pytest.raises(UserError, match=f"{cannot}the files have changed since"):
        evaluate(parse(EvaluateOptions, argv, "evaluate.py", ""))
    case.rows.write_bytes(before)


def test_all_of_a_model_is_kept_at_its_best(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers are the last step's: to load a model again is left to its user."""
    out = case.out("full")
    ended, losses = summary(out), held_out(out)
    step = min(range(1, 4), key=lambda step: losses[step])
    assert ended["kept_step"] == ended["best_step"] == step and ended["answers_step"] == 3
    names = (out / "model", out / "best" / f"step-{step}")
    files = [folder / "model.safetensors" for folder in names]
    assert files[0].samefile(files[1])
    last = (out / "model_last" / "model.safetensors").read_bytes()
    assert (last == files[0].read_bytes()) == (step == 3)
    found = evaluated(case, capsys, "--model", str(out / "model"))
    assert found == pytest.approx(losses[step], rel=SMALL_MODEL)
