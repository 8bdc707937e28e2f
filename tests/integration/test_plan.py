"""`train` and its plan, as processes: what cannot fit is refused, what fits says what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_runs import (
    deepspeed_json,
    launched,
    succeeded,
    write_json,
    write_model,
    write_rows,
)


def arguments(folder: Path, *more: str) -> list[str]:
    given = {
        "--deepspeed": write_json(folder / "ds.json", deepspeed_json()),
        "--model": write_model(folder / "model"),
        "--data": write_rows(folder / "rows.json", 6),
        "--template": "chatml",
        "--output_dir": folder / "out",
        "--max_steps": "1",
    }
    words = [str(word) for pair in given.items() for word in pair]
    return [*words, "--json", *more]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("torchrun", 2)])
def test_a_run_that_cannot_fit_is_refused_before_it_loads(
    launcher: str, ranks: int, tmp_path: Path
) -> None:
    """1.5 TiB in float32, which hardly any machine has."""
    words = arguments(tmp_path)
    words[words.index("--model") + 1] = "random:llama-3.1-405b"
    words += ["--tokenizer", str(tmp_path / "model")]
    done = launched(launcher, "train.py", *words, ranks=ranks)  # type: ignore[arg-type]
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "its weights alone" in said[0], done.stderr
    assert "--suggest" in said[0] and "--plan false" in said[0]
    assert done.returncode == (2 if launcher == "python" else 1)  # torchrun's own status
    assert not (tmp_path / "out").exists()


def test_what_a_run_needs_is_said_and_kept(tmp_path: Path) -> None:
    done = launched("python", "train.py", *arguments(tmp_path))
    succeeded(done)
    assert "memory    0.0 of " in done.stderr
    plan = json.loads((tmp_path / "out/run.json").read_text())["plan"]
    assert sum(plan["terms"].values()) == plan["peak_bytes"] > 0
    assert plan["available_bytes"] > plan["used_bytes"]


def test_no_plan_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    done = launched("python", "train.py", *arguments(tmp_path, "--plan", "false"))
    succeeded(done)
    assert "plan:" not in done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["plan"] is None
