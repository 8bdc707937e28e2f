"""What a run is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.parallel.mesh import SINGLE, Mesh
from llama.settings import TrainOptions
from llama.settings.deepspeed_json import load
from llama.train.start.inputs import read_inputs
from llama.train.start.schedule import schedule
from tests.support.tiny_runs import deepspeed_json, write_json, write_model, write_rows

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "steps", "notes"), [(3, 1, 1), (4, 1, 0), (5, 2, 0)])
def test_fewer_rows_than_a_batch_are_taken_and_said(
    rows: int, steps: int, notes: int, tmp_path: Path
) -> None:
    options = TrainOptions(
        deepspeed=write_json(tmp_path / "ds.json", deepspeed_json(accumulation=4)),
        model=str(write_model(tmp_path / "model")),
        data=[write_rows(tmp_path / "rows.json", rows)],
        template="chatml",
        pack=False,
        epochs=1,
    )
    inputs = read_inputs(options, load(options.deepspeed, []), ALONE)
    plan = schedule(inputs, ALONE)
    said = "the data fills 3 of the 4 rows of a batch: every step takes all of it"
    assert plan.resolved.notes.count(said) == notes == len(plan.resolved.notes)
    assert plan.total_steps == steps
