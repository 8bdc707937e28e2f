"""A run told of in every place at once, with the real packages and no network: gone on with, each
has every number once; and where nothing answers, the run ends as it would have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_files import ROOT
from tests.support.skips import needs_packages
from tests.support.tiny_runs import (
    deepspeed_json,
    merged,
    of_one_thread,
    write_json,
    write_model,
    write_rows,
)

pytestmark = [pytest.mark.slow, needs_packages("trackio", "wandb", "mlflow")]

STEPS = 8
READ = """
import json, sys
from mlflow.tracking import MlflowClient
from trackio.sqlite_storage import SQLiteStorage
ids = json.load(open("out/report_to.json"))
client = MlflowClient("mlruns")
run = client.get_run(ids["mlflow"])
names = sorted(run.data.metrics)
lines = SQLiteStorage.get_logs("llama-lora", ids["trackio"])
print(json.dumps({
    "mlflow": {n: [m.step for m in client.get_metric_history(ids["mlflow"], n)] for n in names},
    "mlflow status": run.info.status,
    "mlflow runs": len(client.search_runs([run.info.experiment_id])),
    "mlflow params": run.data.params,
    "mlflow files": sorted(file.path for file in client.list_artifacts(ids["mlflow"])),
    "trackio": {n: [line["step"] for line in lines if n in line] for n in names},
    "trackio runs": len(SQLiteStorage.get_runs("llama-lora")),
    "trackio samples": [line["samples"]["_value"] for line in lines if "samples" in line],
    "trackio config": SQLiteStorage.get_run_config("llama-lora", ids["trackio"]),
}))
"""


class Place:
    """A folder with what a tiny run needs, and its own environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_model(folder / "model")
        write_rows(folder / "rows.json")
        write_rows(folder / "held.json", 3)
        write_json(folder / "ds.json", deepspeed_json())
        of_user = ("WANDB_", "MLFLOW_", "TRACKIO_", "NETRC")
        kept = {k: v for k, v in of_one_thread().items() if not k.startswith(of_user)}
        mine = {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
        self.environment = kept | mine | {"MLFLOW_ALLOW_FILE_STORE": "true"}

    def train(self, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = ["--deepspeed", "ds.json", "--model", "model", "--data", "rows.json"]
        argv += ["--eval_data", "held.json", "--seq_len", "64", "--template", "chatml"]
        argv += ["--output_dir", "out", "--max_steps", str(STEPS), "--save_every", "3"]
        argv += ["--report_to", "tensorboard,trackio,wandb,mlflow", "--json", "true"]
        script = str(ROOT / "launcher" / "train.py")
        return self._run(script, *merged(argv, more), **environment)

    def read(self) -> dict[str, Any]:
        return json.loads(self._run("-c", READ).stdout)

    def _run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.mark.long
def test_a_run_that_goes_on_goes_on_in_every_place(tmp_path: Path) -> None:
    """Its newest checkpoint is lost: what it tells of the last two steps it has told before."""
    place = Place(tmp_path)
    first = place.train(WANDB_MODE="offline")
    assert first.returncode == 0, first.stderr
    ids = json.loads((tmp_path / "out" / "report_to.json").read_text())
    os.rename(tmp_path / "out" / "checkpoints" / f"step-{STEPS}", tmp_path / "lost")
    again = place.train(WANDB_MODE="offline")
    assert again.returncode == 0 and "step 6 of 8" in again.stderr, again.stderr
    assert json.loads(again.stdout)["status"] == "finished"  # and nothing else is said there
    assert "goes on without" not in first.stderr + again.stderr
    assert json.loads((tmp_path / "out" / "report_to.json").read_text()) == ids
    found = place.read()
    every, evaluated = [*range(1, STEPS + 1)], [0, 6, STEPS]
    for kind in ("mlflow", "trackio"):
        assert found[f"{kind} runs"] == 1
        numbers = found[kind]
        assert numbers["train/loss"] == numbers["speed/seconds"] == every
        assert numbers["eval/loss"] == evaluated and numbers["memory/peak_gib"] == every
    assert found["mlflow status"] == "FINISHED"
    assert found["mlflow params"]["options.lora.rank"] == "16"
    assert found["mlflow files"] == ["samples.json", "summary.json"]
    assert found["trackio config"]["options"]["lora"]["rank"] == 16
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    told = [{k: row[k] for k in ("prompt", "before", "after")} for row in samples]
    shown = [{k: row[k] for k in told[0]} for row in found["trackio samples"][-1]]
    assert shown == told  # its page takes a text as it is
    logs = sorted((tmp_path / "out" / "wandb").glob(f"offline-run-*/run-{ids['wandb']}.wandb"))
    assert len(logs) == 2  # without a server each process writes a log, of one run
    for log in logs:
        assert b"eval/loss" in log.read_bytes() and b"train/loss" in log.read_bytes()
    assert list(logs[-1].parent.glob("files/media/table/samples_*.json"))


def test_where_nothing_answers_the_run_ends_as_it_would(tmp_path: Path) -> None:
    (tmp_path / "shut").write_text("")  # a file, where a folder is to be made
    done = Place(tmp_path).train(
        "--max_steps", "2", "--report_to", "mlflow", MLFLOW_TRACKING_URI=str(tmp_path / "shut")
    )
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "finished"
    said = [line for line in done.stderr.splitlines() if "goes on without it" in line]
    assert len(said) == 1 and said[0].startswith("--report_to mlflow: "), done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("watch:")]


def test_wandb_without_an_account_is_refused(tmp_path: Path) -> None:
    done = Place(tmp_path).train("--report_to", "wandb")
    assert done.returncode == 2 and done.stdout == ""
    line = "error: --report_to wandb: no account is known here; run wandb login, or set "
    assert done.stderr.splitlines()[-1] == f"{line}WANDB_MODE=offline"
    assert not (tmp_path / "out").exists()
