"""A run that begins with another's adapter: from its very values, on any topology, and exactly
through a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llama.commands.evaluate.command import evaluate
from llama.settings import EvaluateOptions
from llama.settings.options import run_command
from tests.support.closeness import SMALL_MODEL
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import read_lines, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """`first` ended; `whole` and `stopped` began with its adapter, the latter taken up again after
    three steps; `spread` too, on two ranks below."""
    case = Case(tmp_path_factory.mktemp("init"))
    case.add("first", settings("zero1-fp32"), None, "--max_steps", "4", "--lora.rank", "8")
    begin = ("--init_adapter", str(case.out("first")), "--lora.targets", "-")
    case.add("whole", settings("zero1-fp32"), None, *begin)
    case.add("stopped", settings("zero1-fp32"), 3, *begin)
    case.add("stopped", settings("zero1-fp32"), None, *begin)
    case.go()
    return case


def adapter(folder: Path) -> dict:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def before(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["eval_loss_before"]


def evaluated(case: Case, name: str, capsys: pytest.CaptureFixture[str]) -> float:
    argv = ["--adapter", str(case.out(name)), "--data", str(case.held_out), "--seq_len", "96"]
    argv += ["--precision", "float32", "--json"]
    assert run_command(evaluate, EvaluateOptions, "evaluate.py", "", argv) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]


def test_it_begins_where_the_other_ended(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` needs neither base nor template said: the run's adapter brings both."""
    loss = evaluated(case, "first", capsys)
    assert before(case.out("whole")) == pytest.approx(loss, rel=SMALL_MODEL)
    first = json.loads((case.out("first") / "summary.json").read_text())
    assert first["eval_loss"] == pytest.approx(loss, rel=SMALL_MODEL)
    assert abs(first["eval_loss_before"] - loss) > 0.01, "it has not trained"


def test_the_answers_before_are_the_other_s(case: Case) -> None:
    """Not the bare base's, which are those of the adapter switched off."""
    first, whole = (read_lines(case.out(name) / "samples.jsonl") for name in ("first", "whole"))
    assert [sample["before"] for sample in whole] == [sample["after"] for sample in first]
    assert [sample["before"] for sample in first] != [sample["after"] for sample in first]


def test_a_stop_changes_nothing(case: Case) -> None:
    whole, stopped = adapter(case.out("whole")), adapter(case.out("stopped"))
    assert whole.keys() == stopped.keys()
    assert all((whole[name] == stopped[name]).all() for name in whole)
    samples = [(case.out(name) / "samples.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert samples[0] == samples[1]


def test_the_card_says_what_it_began_with(case: Case) -> None:
    document = json.loads((case.out("whole") / "adapter" / "training.json").read_text())
    assert document["settings"]["init_adapter"] == str(case.out("first") / "adapter")
    assert document["settings"]["lora.rank"] == 8 and document["step"] == 8
    card = (case.out("whole") / "adapter" / "README.md").read_text()
    samples = read_lines(case.out("whole") / "samples.jsonl")
    assert card.count("### Prompt") == sum(sample["rows"] == "held-out" for sample in samples) > 0


@pytest.mark.long
def test_spread_over_ranks_it_begins_the_same(case: Case) -> None:
    """Under ZeRO-3 each rank's share is put in before it is partitioned; cut by tensor parallelism
    each takes its own."""
    begin = ("--init_adapter", str(case.out("first")), "--lora.targets", "-", "--max_steps", "1")
    case.add("zero3", settings("zero3-fp32", 1), None, *begin)
    case.go(ranks=2)  # a process keeps the groups of its first mesh
    case.add("cut", settings("zero0-fp32"), None, *begin, "--tensor_parallel", "2")
    case.go(ranks=2)
    for name in ("zero3", "cut"):
        assert before(case.out(name)) == pytest.approx(before(case.out("whole")), rel=SMALL_MODEL)


def test_it_goes_on_with_no_other(case: Case) -> None:
    """With none it is another run; with another adapter the hash that is named is that one's."""
    argv = case.argv("whole", settings("zero1-fp32"), "--lora.rank", "8", "--epochs", "3")
    done = started("python", "launcher/train.py", *argv)
    assert done.returncode == 2
    line = "--init_adapter: not what the run began with: its SHA-256 was"
    assert line in done.stderr and "is now that of none" in done.stderr
