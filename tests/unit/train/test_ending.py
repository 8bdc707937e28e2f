"""The last lines of a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.launch import typed as typing
from llama.methods.full import FullMethod
from llama.methods.lora import LoRAMethod
from llama.settings import EvaluateOptions, GenerateOptions, TrainOptions
from llama.settings.options import parse
from llama.train.ending import UNKNOWN, closing, finished_already
from llama.train.start.resume import Start

FOLDER = Path("runs/my run")


def ended(**more: Any) -> dict[str, Any]:
    losses = {"eval_loss_before": 2.6308, "best_eval_loss": 2.1117, "eval_loss": 2.285}
    steps = {"steps": 40, "best_step": 16, "kept_step": 16}
    return {"epoch_losses": [2.3, 1.9], **losses, **steps, **more}


def lines(summary: dict[str, Any], method: type = LoRAMethod, **options: Any) -> list[str]:
    given = TrainOptions(deepspeed=Path("ds.json"), **options)
    held_out = object() if not given.data or given.eval_data or given.eval_split else None
    inputs: Any = SimpleNamespace(options=given, method=method, held_out=held_out)
    return closing(inputs, FOLDER, summary, "bf16")


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bin/llama-lora"])
    monkeypatch.setattr(typing, "_named", lambda program: program.name)
    monkeypatch.setattr(typing, "_offered", {"generate", "evaluate"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "2.6308 before, 2.1117 at step 16 (best, kept), 2.2850 at the end"),
        (
            {"kept_step": 40},
            "2.6308 before, 2.1117 at step 16 (best, not kept: --best false), 2.2850 at the end",
        ),
        (
            {"best_step": 40, "kept_step": 40, "best_eval_loss": 2.0},
            "2.6308 before, 2.0000 at the end, step 40 (best, kept)",
        ),
        (
            {"best_step": None, "best_eval_loss": None, "kept_step": 40, "eval_loss": float("nan")},
            "2.6308 before, nan at the end; no step has one to be kept for",
        ),
    ],
    ids=["earlier", "not kept", "last", "none"],
)
def test_what_became_of_the_held_out_loss(more: dict[str, Any], said: str) -> None:
    assert lines(ended(**more))[1] == f"held-out loss: {said}"


def test_an_epoch_without_a_step_that_counted_has_no_loss() -> None:
    assert lines(ended(epoch_losses=[None, 1.5]))[0] == "average loss of each epoch: nan, 1.5000"


def test_a_run_that_made_it_worse_says_so() -> None:
    said = "no step has come below the held-out loss before training"
    assert said in lines(ended(eval_loss_before=2.0)) and said not in lines(ended())


def test_where_it_is() -> None:
    assert f"adapter (PEFT): {FOLDER}/adapter, of step 16; of the last, {FOLDER}/adapter_last" in (
        lines(ended())
    )
    assert f"adapter (PEFT): {FOLDER}/adapter" in lines(ended(kept_step=40))
    without = lines(ended(kept_step=40), data=[Path("rows.json")])
    assert without[1] == f"{UNKNOWN}: what the run gives is of its last step, 40"


def following(found: list[str]) -> list[list[str]]:
    """The words of each command that is printed."""
    return [shlex.split(line) for line in found if line.startswith("  ")]


def test_what_comes_next_is_taken_by_the_commands() -> None:
    """With what makes the rows the tokens that they were."""
    more = {"seq_len": 64, "pack": False, "overlong": "cut", "columns": (("output", "an answer"),)}
    held_out = [Path("held out.json"), Path("more.json")]
    found = following(lines(ended(), data=[Path("a")], eval_data=held_out, **more))
    assert [words[:2] for words in found] == [
        ["llama-lora", "generate"],
        ["llama-lora", "evaluate"],
    ]
    asked = parse(GenerateOptions, found[0][2:], "generate", "")
    assert asked.adapter == FOLDER
    options = parse(EvaluateOptions, found[1][2:], "evaluate", "")
    assert (options.adapter, options.data) == (FOLDER, held_out)
    assert {name: getattr(options, name) for name in more} == more
    assert "--seq_len" not in following(lines(ended()))[1], "what is the default is left out"


def test_a_base_in_fewer_bits_is_held_so_where_it_is_asked_and_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it was trained beside, and fits: merged weights are of the untouched base."""
    monkeypatch.setattr(typing, "_offered", {"generate", "evaluate", "export"})
    asked, measured, handed_on = following(lines(ended(), base="int8"))
    assert parse(GenerateOptions, asked[2:], "generate", "").base == "int8"
    assert parse(EvaluateOptions, measured[2:], "evaluate", "").base == "int8"
    assert "--base" not in handed_on
    assert not any("--base" in words for words in following(lines(ended())))


def test_a_model_is_named_as_one() -> None:
    found = following(lines(ended(), FullMethod, template="chatml"))
    for words in found:
        assert words[2:6] == ["--model", f"{FOLDER}/model", "--template", "chatml"]


def test_only_commands_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typing, "_offered", {"chat", "evaluate", "export"})
    split = {"eval_split": 0.1, "data": [Path("a")], "seq_len": 64}
    found = following(lines(ended(), **split))
    assert [words[1] for words in found] == ["chat", "evaluate", "export"]
    assert found[1][2:] == ["--adapter", str(FOLDER)], "which knows what was split off"
    names = [words[1] for words in following(lines(ended(), FullMethod, **split))]
    assert names == ["export"], "rows that were split off are no file to evaluate on"
    monkeypatch.setattr(typing, "_offered", set())
    assert "next:" not in lines(ended())


def test_a_finished_run_says_how_to_go_on() -> None:
    start = Start(FOLDER, finished={"early_stop": None})
    assert finished_already(start) == [
        f"{FOLDER} is finished; to go on, raise --epochs or --max_steps"
    ]
    start.finished = {"early_stop": 3}
    assert finished_already(start) == [
        f"{FOLDER} is finished; to go on, raise --early_stop above 3, or leave it out"
    ]
