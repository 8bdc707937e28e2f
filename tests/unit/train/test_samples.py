"""Answers of a model that several ranks hold, and the file that they go to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama.train.samples import (
    Prompt,
    as_text,
    comparable,
    paired,
    spread,
    write_samples,
)
from tests.support.failing_calls import At, before_each_call, operations
from tests.support.tiny_runs import read_lines, torchrun_module


@pytest.mark.slow
@pytest.mark.long
def test_all_ranks_write_the_first_one_s_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, and to the same end: under ZeRO-3 each forward pass is everybody's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = torchrun_module("tests.unit.train.answering_ranks", ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr


def test_samples_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, prompts = tmp_path / "samples.jsonl", [Prompt("two\nlines", [1]), Prompt("é", [2])]

    def write(after: str) -> None:
        write_samples(path, prompts, paired(prompts, ["a", "b"], [after, after]))

    def fail() -> None:
        raise OSError(28, "No space left on device")

    count = operations(lambda: write("earlier"))
    earlier = path.read_bytes()
    assert read_lines(path)[1] == {
        "rows": "held-out",
        "prompt": "é",
        "before": "b",
        "after": "earlier",
    }
    for index in range(count):
        with before_each_call(At(index, fail)), pytest.raises(OSError, match="No space left"):
            write("later")
        assert os.listdir(tmp_path) == ["samples.jsonl"]
        named = index > count - 3  # what fails after it has its name is the folder's own sync
        assert path.read_bytes() == earlier or named


def test_rows_are_asked_from_all_over_the_set() -> None:
    """The first of each quarter first; each row once."""
    for count in (0, 1, 3, 4, 5, 200, 202):
        order = list(spread(range(count)))
        assert sorted(order) == list(range(count))
    assert list(spread(range(200)))[:5] == [0, 50, 100, 150, 1]


def test_each_kind_of_rows_is_under_its_heading() -> None:
    prompts = [Prompt("a", [1], "training"), Prompt("b", [1], "training"), Prompt("c", [1])]
    text = as_text(paired(prompts, ["1", "2", "3"], ["4", "5", "6"]))
    assert text.split("\n\n") == [
        "From the training rows:",
        "> a\n  before: 1\n  after:  4",
        "> b\n  before: 2\n  after:  5",
        "Held out:",
        "> c\n  before: 3\n  after:  6",
    ]


def test_a_checkpoint_of_an_earlier_program_answers_the_held_out_prompts_alone() -> None:
    training = [Prompt("a", [1], "training"), Prompt("b", [1], "training")]
    held_out = [Prompt("c", [1]), Prompt("d", [1]), Prompt("e", [1])]
    both = training + held_out
    assert comparable(both, ["1"] * 5) == (both, None)
    kept, line = comparable(both, ["1"] * 3)
    assert kept == held_out and line is not None and "2 are not compared" in line
    kept, line = comparable(both, ["1"])
    assert kept == [] and line is not None and "5 are not compared" in line
    assert comparable([], []) == ([], None)
