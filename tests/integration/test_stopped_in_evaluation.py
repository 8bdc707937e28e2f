"""A run that is asked to stop while it evaluates, which may take longer than its host waits. It
ends the evaluation, keeps the step that it is at, and evaluates that when it is gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_resume import assert_the_same
from tests.support.resume_case import Case, settings
from tests.support.tiny_runs import read_lines

pytestmark = pytest.mark.slow

KIND = settings("zero1-fp32")
RARELY = ("--save_every", "100")


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def evaluated(out: Path) -> list[int]:
    return [line["step"] for line in read_lines(out / "metrics.jsonl") if "eval_loss" in line]


@pytest.mark.long
def test_a_run_that_is_asked_to_stop_in_an_evaluation(tmp_path: Path) -> None:
    """In the one before the first step, in the one after an epoch, after a step of one, and in the
    last: each time the rest is the run that was not stopped."""
    case = Case(tmp_path)
    case.add("straight", KIND, None, *RARELY)
    case.add("every", KIND, None, *RARELY, "--eval_every", "2")
    said_at = {"straight": (0, 4, 8), "every": (2,)}
    for like, places in said_at.items():
        more = ("--eval_every", "2") if like == "every" else ()
        for step in places:
            case.add(f"at-{step}", KIND, None, *RARELY, *more, stop_in_evaluation_at=step)
    said = case.go()
    for step in (2, 4, 8):
        assert f"stopped after step {step}; the same command goes on from there" in said
        assert step not in evaluated(case.out(f"at-{step}"))
        assert summary(case.out(f"at-{step}"))["status"] == "interrupted"
        assert max((case.out(f"at-{step}") / "checkpoints").iterdir()).name == f"step-{step}"
    assert not list(case.out("at-0").glob("checkpoints/*")), "there is nothing to go on from"
    for like, places in said_at.items():
        more = ("--eval_every", "2") if like == "every" else ()
        for step in places:
            case.add(f"at-{step}", KIND, None, *RARELY, *more)
    case.go()
    for like, places in said_at.items():
        for step in places:
            assert_the_same(case.out(f"at-{step}"), case.out(like))


@pytest.mark.long
def test_an_end_that_is_moved_to_a_checkpoint_which_is_yet_to_be_evaluated(tmp_path: Path) -> None:
    """The first checkpoint is made behind the epoch's end, before the evaluation whose result is
    then kept. With no step left to go, it is made all the same."""
    case = Case(tmp_path)
    case.add("short", KIND, None, *RARELY, "--epochs", "1")
    case.add("moved", KIND, 6, *RARELY)
    case.go()
    shutil.rmtree(case.out("moved") / "checkpoints" / "step-6")  # as if it had been killed there
    case.add("moved", KIND, None, *RARELY, "--epochs", "1")
    said = case.go()
    assert "step 4 of 4" in said
    ended = summary(case.out("moved"))
    assert (ended["status"], ended["steps"]) == ("finished", 4)
    assert evaluated(case.out("moved")) == evaluated(case.out("short")) == [0, 4]
