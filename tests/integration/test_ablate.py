"""`launcher/ablate.py` as a user starts it: every combination measured, beside what was planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_runs import launched, succeeded, write_model, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROWS = 4
CLOSE = 0.02
"""The planner's promise. Of models this small what Python holds for a moment longer is a share."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    rows = write_rows(folder / "rows.json", 120)
    options = {"rows": ROWS, "seq_len": 192, "steps": 3, "precision": "float32", "json": "true"}
    argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    model = write_model(folder / "model")
    return succeeded(
        launched(
            "python",
            "ablate.py",
            "--model",
            model,
            "--data",
            rows,
            "--eval_data",
            rows,
            "--output_dir",
            folder / "out",
            *argv,
        )
    )


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in document["results"]}


def test_every_combination_is_there_with_its_plan_close_by(document: dict[str, Any]) -> None:
    results = by_name(document)
    assert len(results) == 12
    for name, result in results.items():
        assert sum(result["parts"].values()) == result["peak"], name
        assert result["planned_peak"] == pytest.approx(result["peak"], rel=CLOSE), name
        assert result["seconds"] > 0 and result["eval_loss"] < result["eval_loss_before"]


def test_techniques_do_what_they_do(document: dict[str, Any]) -> None:
    results = by_name(document)
    block, none = results["full float32 block 1x4"], results["full float32 none 1x4"]
    assert block["loss"] == none["loss"] and block["eval_loss"] == none["eval_loss"]
    assert block["most"]["activations"] < none["most"]["activations"]
    lora = results["lora float32 none 1x4"]
    for part in ("gradients", "optimizer"):
        assert lora["most"][part] < none["most"][part]
    assert none["most"]["optimizer"] >= 8 * none["most"]["weights"] // 4  # two float32 moments


def test_the_page_holds_the_verdicts_and_its_figures(
    document: dict[str, Any], folder: Path
) -> None:
    out = folder / "out"
    page = (out / "ablation.md").read_text()
    assert json.loads((out / "ablation.json").read_text())["results"] == document["results"]
    for verdict in document["verdicts"]:
        assert f"| {verdict['claim']} | {verdict['figure'] or '-'} | {verdict['mark']} |" in page
    for name in ("memory-lora", "time-lora", "memory-full", "time-full"):
        assert f"({name}.png)" in page
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_several_processes_are_refused(folder: Path) -> None:
    done = launched("torchrun", "ablate.py", "--output_dir", folder / "two", ranks=2)
    assert done.returncode != 0
    assert "ablate measures one process" in done.stdout + done.stderr
    assert not (folder / "two").exists()
