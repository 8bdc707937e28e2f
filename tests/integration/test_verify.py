"""`verify` as a user starts it: on every file of ds_configs/, and refused where it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.commands.verify.command import verify
from llama.settings import VerifyOptions
from llama.settings.options import run_command
from tests.support.model_files import ROOT
from tests.support.tiny_runs import launched, succeeded, write_model

pytestmark = pytest.mark.slow
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
SHORT = ("lora",)
"""The others are `make test-long`'s."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[] if file.stem in SHORT else pytest.mark.long)
        for file in FILES
    ],
)
def test_every_shipped_file_is_proved(file: Path, model: Path) -> None:
    """Two ranks: data-parallel, but tensor-parallel for the plainest file."""
    degree = 2 if file.stem == "lora" else 1
    options = ("--deepspeed", file, "--model", model, "--lora.rank", "4", "--json")
    more = ("--tensor_parallel", str(degree), "--seq_len", "48", "--steps", "3")
    result = succeeded(launched("deepspeed", "verify.py", *options, *more, ranks=2))
    assert result["agrees"] and result["topology"]["tensor_parallel"] == degree
    precisions = 1 if file.stem == "lora_float32" else 2
    assert len(result["runs"]) == precisions
    for run in result["runs"]:
        rows = {row["what"]: row for row in run["rows"]}
        moved = {"updated adapter", "distance moved"}
        assert {"loss", "gradient norm", *moved, "replicas, by hash"} == set(rows)


def test_what_cannot_be_split_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--deepspeed", str(FILES[0]), "--model", str(model), "--tensor_parallel", "2"]
    assert run_command(verify, VerifyOptions, "verify.py", "", argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tensor_parallel: 1 process cannot be divided into groups of 2")
