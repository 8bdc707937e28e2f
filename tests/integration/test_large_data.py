"""Runs on data that is made in processes and kept, weighed and split: on one rank, on two, and gone
on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.large_rows import write
from tests.support.tiny_runs import (
    deepspeed_json,
    launched,
    read_lines,
    succeeded,
    write_json,
    write_model,
)

ROWS = 50_000
"""More than 4 MB of JSON: what is kept."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_model(folder / "model")
    write(folder / "texts.jsonl", ROWS, texts=True)
    write(folder / "few.json", 40)
    return folder


def arguments(folder: Path, out: str, ranks: int, *more: str) -> list[str]:
    settings = write_json(folder / f"{ranks}.json", deepspeed_json(1, 4 // ranks))
    given = {
        "deepspeed": settings,
        "model": folder / "model",
        "data_cache": folder / "cache",
        "eval_split": "20",
        "overlong": "drop",
        "template": "chatml",
        "seq_len": "200",
        "max_steps": "3",
        "save_every": "2",
        "output_dir": folder / out,
    }
    data = ("--data", str(folder / "texts.jsonl:1/3"), "--data", str(folder / "few.json:2"))
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return [*words, *data, *more]


def data_of(folder: Path, out: str) -> list[dict[str, Any]]:
    return json.loads((folder / out / "run.json").read_text())["data"]


@pytest.mark.long
def test_the_same_on_one_rank_and_on_two_and_gone_on_with(folder: Path) -> None:
    alone = launched("python", "train.py", *arguments(folder, "alone", 1, "--json"))
    succeeded(alone)
    assert len(list((folder / "cache").glob("*/index.json"))) == 3  # the examples, packed twice
    both = launched("torchrun", "train.py", *arguments(folder, "both", 2, "--json"), ranks=2)
    succeeded(both)
    one, two = (data_of(folder, out) for out in ("alone", "both"))
    assert one == two and [part["option"] for part in one] == ["data", "eval_data"]
    assert one[1]["examples"] == 20 and "20 more are held out" in one[0]["report"]
    lines = [read_lines(folder / out / "metrics.jsonl") for out in ("alone", "both")]
    losses = [[line["loss"] for line in of_run if "loss" in line] for of_run in lines]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # float32, summed in another order
    on = arguments(folder, "alone", 1, "--json", "--max_steps", "4")
    on.remove("3")
    on.pop(on.index("--max_steps"))
    assert succeeded(launched("python", "train.py", *on))["steps"] == 4
    other = [word.replace("few.json:2", "few.json:3") for word in on]
    refused = launched("python", "train.py", *other)
    assert refused.returncode == 2
    assert "weights of --data: the run began with ['1/3', '2']" in refused.stderr
