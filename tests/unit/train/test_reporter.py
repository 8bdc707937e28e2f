"""What a run says of its losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

from llama.checkpoint import RunState
from llama.files.json_text import json_text
from llama.train.reporter import norms_before, read_whole, shown
from llama.train.start.resume import Start


def test_a_loss_is_shown_alike_before_and_after_it_went_through_a_checkpoint() -> None:
    for loss in (0.5, math.nan):
        assert shown(json.loads(json_text(loss))) == shown(loss)
    assert shown(0.5) == "0.5000"


def test_norms_of_a_checkpoint_s_own_step_and_later_are_taken_again(tmp_path: Path) -> None:
    """Unless it was saved after its evaluation, as where a run ends early. A killed run did not end
    the last line."""
    lines = [json.dumps({"step": step, "norms": {}}) + "\n" for step in (4, 8, 12)]
    checkpoints = tmp_path / "checkpoints"
    (tmp_path / "norms.jsonl").write_text("".join(lines) + '{"step"')
    kept = {
        (step, evaluated): norms_before(
            Start(
                tmp_path, step, RunState(evaluated=evaluated), source=checkpoints / f"step-{step}"
            )
        )
        for step, evaluated in ((2, 0), (4, 0), (5, 4), (8, 4), (8, 8), (14, 12))
    }
    assert [len(found) for found in kept.values()] == [0, 0, 1, 1, 2, 3]
    assert all(found == lines[: len(found)] for found in kept.values())
    assert norms_before(Start(tmp_path)) == []


def test_a_spoilt_line_is_not_told_again_and_ends_no_run() -> None:
    lines = ['{"step": 1, "loss": null}\n', '{"step"', "3\n", '{"loss": 2}\n', '{"step": 2}\n']
    assert [line["step"] for line in read_whole(lines)] == [1, 2]
