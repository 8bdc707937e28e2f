"""A run needs no compiler, and leaves no half-built extension for the next one to hang on."""

from __future__ import annotations

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


@pytest.mark.slow
def test_a_run_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extensions = tmp_path / "extensions"
    extensions.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    for tool in ("CC", "CXX"):
        monkeypatch.setenv(tool, str(tmp_path / "no-such-compiler"))
    done = launched(
        "python",
        "train.py",
        *("--deepspeed", write_json(tmp_path / "ds.json", deepspeed_json(1))),
        *("--model", write_model(tmp_path / "model"), "--data", write_rows(tmp_path / "rows.json")),
        *("--template", "chatml", "--max_steps", "1", "--output_dir", tmp_path / "out", "--json"),
    )
    assert succeeded(done)["status"] == "finished"
    assert list(extensions.iterdir()) == []
