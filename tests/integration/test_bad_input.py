"""A user's mistake through each launcher; tests/bad_inputs/ has the mistakes themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_inputs.setting import Setting, build
from tests.bad_inputs.setting import launched as launched_as
from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import Launcher, launched, merged, write_json, write_rows


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Sound arguments of `train`."""
    setting = Setting(build(tmp_path), "train")
    paths = ("deepspeed", "model", "data", "output_dir")
    setting.options |= {name: str(setting.path(setting.options[name])) for name in paths}
    return setting.arguments()


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("deepspeed", 2)])
def test_as_a_process_it_ends_with_2(
    launcher: Launcher, ranks: int, arguments: list[str], tmp_path: Path
) -> None:
    """Nothing but the errors is ours; each is said once, however many ranks there are."""
    argv = merged(arguments, ["--data", "absent", "--lora.targets", "wx"])
    done = launched(launcher, "train.py", *argv, ranks=ranks)
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said and not os.path.exists(tmp_path / "out")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, said


@pytest.mark.slow
def test_torchrun_says_it_too(arguments: list[str], tmp_path: Path) -> None:
    """torchrun's own status for a rank that failed is 1, and it reports what the rank's was."""
    done = launched("torchrun", "train.py", *arguments, "--seqlen", "64")
    assert done.returncode == 1
    assert "error: --seqlen: " in done.stderr and "exitcode  : 2" in done.stderr
    assert not os.path.exists(tmp_path / "out")


NOT_THE_SAME = [
    (["--model", "other"], "contents of --model is not the same on every rank: "),
    (["--override", "gradient_clipping=2"], "DeepSpeed JSON: gradient_clipping is not the"),
    (["--seed", "1"], "--seed is not the same on every rank: 0 on rank 0 ("),
    (["--data", "other.json"], "contents of --data is not the same on every rank: "),
    (["--template", "alpaca"], '--template is not the same on every rank: "chatml" on rank 0'),
    (["--data", "bad.json"], "bad.json: holds no rows"),
]
"""What one of two ranks is given otherwise, and what is said of it."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("change", "said"), NOT_THE_SAME)
def test_ranks_that_were_not_given_the_same(
    change: list[str], said: str, arguments: list[str], tmp_path: Path
) -> None:
    """Two ranks as on two hosts; the second is given something else. Both say so, and end."""
    write_rows(tmp_path / "other.json", count=7)
    write_json(tmp_path / "bad.json", [])
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    with (tmp_path / "other/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3e")
    port = str(free_port())
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                ROOT / "launcher/train.py",
                *merged(arguments, change if rank else []),
            ],
            cwd=tmp_path,
            env=os.environ
            | launched_as(rank, 2)
            | {"MASTER_PORT": port, "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 2, err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0], err
    assert not os.path.exists(tmp_path / "out")
