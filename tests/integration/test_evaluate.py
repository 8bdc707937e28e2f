"""`evaluate` as a process: over ranks as on one, with tasks, and with what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.adapters import peft_format
from llama.settings import LoRAOptions
from tests.support.tiny_runs import (
    CONFIG,
    Launcher,
    launched,
    read_lines,
    succeeded,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow

QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        {"question": f"{i}?", "choices": ["he", "her", "him and her"], "answer": i % 3}
        for i in range(7)
    ],
    "exact": [{"question": f"say {i}", "answer": str(i)} for i in range(5)],
}
COMMON = ("--template", "alpaca", "--precision", "float32", "--max_new_tokens", "8", "--json")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder / "model")
    write_rows(folder / "rows.json")
    for name, rows in QUESTIONS.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(CONFIG.n_layers):
        rows_, columns = CONFIG.linear_shape("wv")
        name = f"layers.{layer}.attention.wv.lora"
        state[f"{name}.a"] = torch.randn(4, columns, generator=generator)
        state[f"{name}.b"] = torch.randn(rows_, 4, generator=generator)
    options = LoRAOptions(rank=4, targets=("wv",))
    peft_format.save(folder / "adapter", state, peft_format.AdapterConfig(options, "m"))
    return folder


def evaluated(
    files: Path, *more: str | Path, launcher: Launcher = "python", ranks: int = 1
) -> dict[str, Any]:
    words = ("--model", files / "model", "--adapter", files / "adapter", *COMMON, *more)
    return succeeded(launched(launcher, "evaluate.py", *words, ranks=ranks))


def test_the_loss_over_ranks_is_that_of_one_process(files: Path) -> None:
    rows = ("--data", files / "rows.json", "--compare")
    alone = evaluated(files, *rows)
    spread = evaluated(files, *rows, "--tensor_parallel", "2", launcher="torchrun", ranks=4)
    assert spread["supervised_tokens"] == alone["supervised_tokens"]
    # Float32 sums in another order, over shards and over ranks.
    assert spread["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    for found in (alone, spread):
        assert found["base"]["loss"] != found["loss"]
        assert found["difference"]["loss"] == found["loss"] - found["base"]["loss"]
    assert spread["base"]["loss"] == pytest.approx(alone["base"]["loss"], rel=1e-6)


@pytest.mark.long
def test_a_task_over_ranks_is_that_of_one_process(files: Path, tmp_path: Path) -> None:
    task = ("--task", files / "choices.jsonl", "--compare")
    alone = evaluated(files, *task, "--output", tmp_path / "alone.jsonl")
    spread = evaluated(
        files,
        *(*task, "--output", tmp_path / "spread.jsonl", "--tensor_parallel", "2"),
        launcher="deepspeed",
        ranks=4,
    )
    assert spread == alone
    assert alone["rows"] == 7 and set(alone["difference"]) == {"acc", "acc_norm"}
    ours, theirs = read_lines(tmp_path / "alone.jsonl"), read_lines(tmp_path / "spread.jsonl")
    assert [row["row"] for row in ours] == [row["row"] for row in theirs] == list(range(1, 8))
    for one, other in zip(ours, theirs, strict=True):
        assert one["answer"] == other["answer"]
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], rel=1e-5)
        assert one["log_likelihoods"] != one["base"]["log_likelihoods"]
    right = sum(row["acc"] for row in ours)
    assert alone["adapter"]["acc"]["right"] == right
    assert alone["difference"]["acc"]["value"] == pytest.approx(
        (right - alone["base"]["acc"]["right"]) / 7
    )


def test_written_answers_over_ranks(files: Path, tmp_path: Path) -> None:
    task = ("--task", files / "exact.jsonl", "--micro_batch", "3")
    alone = evaluated(files, *task, "--output", tmp_path / "alone.jsonl")
    more = ("--output", tmp_path / "spread.jsonl", "--tensor_parallel", "2")
    spread = evaluated(files, *task, *more, launcher="torchrun", ranks=2)
    assert spread == alone
    assert (tmp_path / "alone.jsonl").read_text() == (tmp_path / "spread.jsonl").read_text()
    assert all(row["answer"] for row in read_lines(tmp_path / "alone.jsonl"))
