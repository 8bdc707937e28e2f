"""The scripts of docs/clusters/ as far as one machine can run them: through ranks that are killed,
signals and mistakes, to the end of the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import (
    deepspeed_json,
    of_one_thread,
    write_json,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow

BINARIES = Path(sys.executable).parent
STANDIN = ROOT / "tests/support/slurm_standin.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the project's folder and the shared one hold: enough rows that a run takes seconds
    after its first checkpoint."""
    for name in ("launcher", "ds_configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    activate = tmp_path / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={tmp_path}/bin:{BINARIES}:$PATH\n")
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} {STANDIN} {name} "$@"\n')
        program.chmod(0o755)
    write_model(tmp_path / "MODEL")
    write_rows(tmp_path / "ROWS.jsonl", 500)
    write_json(tmp_path / "ds.json", deepspeed_json(zero_stage=1, accumulation=1))
    return tmp_path


def batch_job(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """docs/clusters/slurm.sh as sbatch would start it, on one node of two tasks."""
    files = {"MODEL": "MODEL", "DATA": "ROWS.jsonl", "RUN": "run", "SETTINGS": "ds.json"}
    job = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "PAUSE": "1"}
    job |= {"DOCTORS_PORT": str(free_port())}
    return subprocess.run(
        ["bash", "docs/clusters/slurm.sh"],
        cwd=folder,
        env=of_one_thread() | files | job | variables,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def calls(folder: Path) -> list[str]:
    """Of every call of srun and scontrol, what it was for."""
    lines = map(json.loads, (folder / "said.jsonl").read_text().splitlines())
    return [
        Path(next(word for word in words if "launcher/" in word)).stem
        if words[0] == "srun"
        else " ".join(words)
        for words in lines
    ]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run/summary.json").read_text())


def resumed(folder: Path) -> int:
    return len(json.loads((folder / "run/run.json").read_text())["resumed"])


@pytest.mark.long
def test_slurm_a_killed_rank(folder: Path) -> None:
    done = batch_job(folder, STANDIN_FAULT="kill")
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["doctor", "train", "train"]
    assert "start 1 of 4 ended with 137; the next in 1 s" in done.stderr
    assert (summary(folder)["status"], resumed(folder)) == ("finished", 1)


@pytest.mark.long
def test_slurm_the_end_of_the_jobs_time(folder: Path) -> None:
    done = batch_job(folder, STANDIN_FAULT="terminate")
    assert done.returncode == 143, done.stderr
    assert calls(folder) == ["doctor", "train", "scontrol requeue 42"]
    assert summary(folder)["status"] == "interrupted"
    done = batch_job(folder, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    assert calls(folder)[3:] == ["doctor", "train"]
    assert (summary(folder)["status"], resumed(folder)) == ("finished", 1)


@pytest.mark.long
def test_slurm_a_mistake_is_not_tried_again(folder: Path) -> None:
    write_json(folder / "ds.json", deepspeed_json(zero_stage=1) | {"gradient_clip": 1.0})
    done = batch_job(folder)
    assert done.returncode == 2 and "error: ds.json: gradient_clip: unknown key" in done.stderr
    assert calls(folder) == ["doctor", "train"]


@pytest.mark.parametrize(
    ("status", "restarts", "expected"),
    [
        ("1", "0", ["train"] * 4),
        pytest.param("143", "19", ["train", "scontrol requeue 42"], marks=pytest.mark.long),
        pytest.param("143", "20", ["train"], marks=pytest.mark.long),
    ],
)
def test_slurm_there_is_an_end(
    status: str, restarts: str, expected: list[str], folder: Path
) -> None:
    done = batch_job(folder, STANDIN_FAULT=status, SLURM_RESTART_COUNT=restarts, PAUSE="0")
    assert done.returncode == int(status)
    assert calls(folder) == ["doctor", *expected]


@pytest.mark.long
def test_kubernetes_a_killed_rank(folder: Path) -> None:
    """The command of both pods, side by side: the ranks of both are started again."""
    text = (ROOT / "docs/clusters/kubernetes.yaml").read_text()
    job = list(yaml.safe_load_all(text))[1]
    command = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    here = {
        # Pods have networks of their own; here the port that doctor tries would be one for both.
        "launcher/doctor.py": 'launcher/doctor.py --master_port "$DOCTORS_PORT"',
        "--nproc_per_node 8": "--nproc_per_node 1",
        "lora-0.lora": "127.0.0.1",
        "29500": str(free_port()),
        "/shared/run-1": "run",
        "/shared/": "",
        "ds_configs/lora.json": "ds.json",
    }
    for written, ours in here.items():
        assert written in command
        command = command.replace(written, ours)
    ports = [free_port(), free_port()]
    path = f"{BINARIES}:{os.environ['PATH']}"
    logs = [(folder / f"pod-{index}.log").open("w+") for index in range(2)]
    pods = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=of_one_thread()
            | {"JOB_COMPLETION_INDEX": str(index), "DOCTORS_PORT": str(ports[index]), "PATH": path},
            stdout=logs[index],
            stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]
    try:
        while not list(folder.glob("run/checkpoints/step-*")) and pods[0].poll() is None:
            time.sleep(0.01)
        children = psutil.Process(pods[1].pid).children()
        ranks = [child for child in children if "train.py" in str(child.cmdline())]
        assert len(ranks) == 1, "".join(log.read_text() for log in folder.glob("pod-*.log"))
        ranks[0].kill()
        statuses = [pod.wait(timeout=600) for pod in pods]
    finally:
        for pod in pods:
            pod.kill()
    said = "".join((folder / f"pod-{index}.log").read_text() for index in range(2))
    assert statuses == [0, 0], said
    assert re.search(r"resum|goes on|going on", said), said
    assert (summary(folder)["status"], resumed(folder)) == ("finished", 1)
