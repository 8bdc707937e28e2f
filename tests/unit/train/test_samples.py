"""Answers of a model that several ranks hold, and the file that they go to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama.train.samples import Prompt, write_samples
from tests.support.failing_calls import At, before_each_call, operations
from tests.support.tiny_runs import read_lines, torchrun_module


@pytest.mark.slow
def test_all_ranks_write_the_first_one_s_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, and to the same end: under ZeRO-3 each forward pass is everybody's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = torchrun_module("tests.unit.train.answering_ranks", ranks=2, timeout=120)
    assert done.returncode == 0, done.stderr


def test_samples_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, prompts = tmp_path / "samples.jsonl", [Prompt("two\nlines", [1]), Prompt("é", [2])]

    def write(after: str) -> None:
        write_samples(path, prompts, ["a", "b"], [after, after])

    def fail() -> None:
        raise OSError(28, "No space left on device")

    count = operations(lambda: write("earlier"))
    earlier = path.read_bytes()
    assert read_lines(path)[1] == {"prompt": "é", "before": "b", "after": "earlier"}
    for index in range(count):
        with before_each_call(At(index, fail)), pytest.raises(OSError, match="No space left"):
            write("later")
        assert os.listdir(tmp_path) == ["samples.jsonl"]
        named = index > count - 3  # what fails after it has its name is the folder's own sync
        assert path.read_bytes() == earlier or named
