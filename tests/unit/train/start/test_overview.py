"""What a run says of itself before its first step, as far as no other test asks for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.parallel.mesh import SINGLE, Mesh
from llama.settings import LoRAOptions, TrainOptions
from llama.settings.deepspeed_json import load
from llama.train.start.inputs import read_inputs
from llama.train.start.overview import said_first
from llama.train.start.schedule import schedule
from tests.support.tiny_runs import deepspeed_json, write_json, write_model, write_rows

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
TWO = Mesh(0, 2, SINGLE, 0, 2, None)  # type: ignore[arg-type]
OF_HOST = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overview")
    write_model(folder / "model")
    write_rows(folder / "rows.json", 4)
    return folder


def said(
    folder: Path, mesh: Mesh, zero: dict[str, Any], method: Any = "lora", **more: Any
) -> list[str]:
    document = deepspeed_json() | {"zero_optimization": zero}
    options = TrainOptions(
        deepspeed=write_json(folder / "ds.json", document),
        model=str(folder / "model"),
        data=[folder / "rows.json"],
        template="chatml",
        method=method,
        lora=LoRAOptions(),
        **more,
    )
    inputs = read_inputs(options, load(options.deepspeed, []), ALONE)
    start: Any = SimpleNamespace(folder=folder, source=None, step=0, notes=[])
    return said_first(inputs, schedule(inputs, ALONE), None, mesh, start)


def test_zero3_of_adapters_is_told_of_the_other_way_once(folder: Path) -> None:
    found = [line for line in said(folder, TWO, {"stage": 3}) if "--shard_base" in line]
    (line,) = found
    assert line.startswith("ZeRO-3 gathers each frozen layer from all 2 data-parallel ranks")


@pytest.mark.parametrize(
    ("mesh", "zero", "method"),
    [
        (ALONE, {"stage": 3}, "lora"),
        (TWO, {"stage": 2}, "lora"),
        (TWO, {"stage": 3}, "full"),
        (TWO, {"stage": 3, **OF_HOST}, "lora"),  # host memory may be what holds the base
    ],
)
def test_where_it_is_no_better_nothing_is_said(
    folder: Path, mesh: Mesh, zero: dict[str, Any], method: str
) -> None:
    assert not [line for line in said(folder, mesh, zero, method) if "--shard_base" in line]


def test_one_row_is_no_rows(folder: Path) -> None:
    one = [write_rows(folder / "one.json", 1)]
    found = "\n".join(said(folder, ALONE, {"stage": 0}, eval_data=one))
    assert "4 rows, " in found and "; 1 row held out" in found
