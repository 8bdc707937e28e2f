"""A user's mistake through each launcher; tests/bad_inputs/ has the mistakes themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bad_inputs.setting import Setting, build
from tests.tiny_runs import Launcher, launched


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
    argv = [*arguments, "--data", "absent", "--lora.targets", "wx"]
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
