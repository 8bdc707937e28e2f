"""What a run says of its losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama.checkpoint import RunState
from llama.errors import TrainingError
from llama.files.json_text import json_text
from llama.parallel.mesh import SINGLE, Mesh
from llama.train.loop import Run
from llama.train.reporter import Reporter, norms_before, read_whole, shown
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


def reporter(folder: Path, branch: Path | None = None, **start: Any) -> Reporter:
    """Of a run in `folder`, or in `branch` that goes on from it."""
    method: Any = None
    begun = Start(branch or folder, source=folder / "checkpoints" / "step-1", **start)
    return Reporter(begun, method, 4, Mesh(0, 1, SINGLE, 0, 1, None), torch.device("cpu"))  # type: ignore[arg-type]


def test_a_start_that_ends_before_the_run_begins_changes_no_line(tmp_path: Path) -> None:
    """As where memory gives out while the weights load: the run that was there was whole."""
    for name in ("metrics.jsonl", "norms.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2}\n')
    report = reporter(tmp_path, run=RunState(metrics_lines=1, evaluated=1))
    earlier = report.earlier()
    for name in ("metrics.jsonl", "norms.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'
    report.begin(earlier, {}, ("none",))
    for name in ("metrics.jsonl", "norms.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 1}\n'
    assert report.lines == 1


def test_bytes_that_are_no_text_are_carried_along(tmp_path: Path) -> None:
    spoilt = b'{"step": 1, "loss": "\xff"}\n\xfe\r\n[1]\n{"step": 9}\n'
    for name in ("metrics.jsonl", "norms.jsonl"):
        (tmp_path / name).write_bytes(spoilt)
    (branch := tmp_path / "branch").mkdir()
    report = reporter(tmp_path, branch, run=RunState(metrics_lines=4, evaluated=9))
    report.begin(report.earlier(), {}, ("none",))
    assert (branch / "metrics.jsonl").read_bytes() == spoilt
    assert (branch / "norms.jsonl").read_bytes() == spoilt[: spoilt.index(b"\xfe")]


def test_lines_that_cannot_be_read_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')

    def failing(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", failing)
    report: Any = reporter(tmp_path)
    with pytest.raises(TrainingError) as ended:
        report.earlier()
    monkeypatch.undo()
    (tmp_path / "summary.json").write_text("{}")
    run = SimpleNamespace(report=report, folder=tmp_path, summary={"status": "failed"})
    run.device, run._seconds = torch.device("cpu"), lambda: 1.0
    Run._write_summary(run)  # type: ignore[arg-type]
    assert (tmp_path / "summary.json").read_text() == "{}", "that of the run as it was"
    report.begun = True
    Run._write_summary(run)  # type: ignore[arg-type]
    assert "failed" in (tmp_path / "summary.json").read_text()
    assert str(ended.value).startswith(f"{path}: cannot be read: Permission denied; make it")
