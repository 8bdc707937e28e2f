"""A step whose passes run out of memory is taken again, and comes out as if it had gone well."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.engine.again import begun_again
from llama.engine.window import Apart
from llama.model.kept import Kept
from tests.support.model_files import ROOT
from tests.support.tiny_runs import of_one_thread, write_model


class Attempt:
    """Runs out of memory `failing` times, each time with a tensor in its hands."""

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.held: list[weakref.ref[torch.Tensor]] = []

    def __call__(self) -> str:
        activation = torch.zeros(3)
        self.held.append(weakref.ref(activation))
        if len(self.held) <= self.failing:
            raise torch.OutOfMemoryError(f"attempt {len(self.held)}")
        return "done"


def test_it_is_begun_again_until_it_goes_through_with_nothing_of_the_failures_held() -> None:
    attempt, told = Attempt(3), list[int]()

    def keep_less(failures: int) -> bool:
        assert attempt.held[-1]() is None, "what the failed attempt held is free by now"
        told.append(failures)
        return True

    assert begun_again(attempt, keep_less) == "done"
    assert told == [1, 2, 3]


def test_where_no_less_can_be_kept_the_error_is_the_last_one() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="attempt 2"):
        begun_again(Attempt(5), lambda failures: failures < 2)


def test_another_error_is_nobodys_to_hide() -> None:
    def attempt() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        begun_again(attempt, lambda failures: pytest.fail("memory did not run out"))


class Wanting:
    """A `Room` that is wanting once."""

    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        if self.checks == 1:
            raise torch.OutOfMemoryError("no room")


def test_room_for_what_comes_after_the_passes_is_looked_for_before_they_are_over() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    handed: list[torch.Tensor] = []
    failures: list[int] = []
    window = Apart(
        lambda batch: (weight * batch).sum(),
        [weight],
        lambda gradients: handed.extend(part.clone() for part in gradients.parts),
        lambda failed: failures.append(failed) is None,
        Wanting(),  # type: ignore[arg-type]
    )
    batches: Any = [torch.tensor([1.0, 0.0]), torch.tensor([5.0, 7.0])]
    loss = window.run(batches, lambda model, batch: model(batch), 0.5, None)
    assert loss == 2 + 31 and failures == [1]
    assert len(handed) == 1 and handed[0].tolist() == [3.0, 3.5], "once, and of one attempt"


@pytest.mark.slow
def test_steps_that_ran_out_of_memory_are_the_same_to_the_last_digit(tmp_path: Path) -> None:
    """In the forward or the backward pass of the first or the last micro-batch, with dropout."""
    write_model(tmp_path / "model")
    command = [sys.executable, "-m", "tests.unit.engine.again_steps", str(tmp_path / "model")]
    done = subprocess.run(
        command, cwd=ROOT, env=of_one_thread(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5
    for case, (plain, again) in found.items():
        assert again.pop("failures") == 4 and again.pop("kept") == [Kept.INPUT] * 2
        assert plain.pop("failures") == 0 and plain.pop("kept") == [Kept.ALL] * 2
        assert again == plain, case
