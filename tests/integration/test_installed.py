"""What `pip install .` gives: a wheel, built here and tried in an environment of its own.

No network is used: the wheel is built by the setuptools that is here, and the environment, which
holds nothing but the wheel, finds the packages that it needs where this Python has them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from llama.commands.start import listing
from llama.commands.table import COMMANDS
from tests.support.model_files import ROOT
from tests.support.tiny_runs import read_lines, write_model, write_rows

pytestmark = pytest.mark.slow

SOURCES = ("llama", "ds_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy: setuptools leaves folders behind where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "tree").mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        source, target = ROOT / name, folder / "tree" / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip(sys.executable, "wheel", *offline, "--wheel-dir", folder, folder / "tree")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    pip(sys.executable, "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    # After its own packages come those that are here; of this one only the wheel's is to be found,
    # and what makes this Python run the checkout (a .pth file) is not read there.
    (purelib / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def pip(python: str, *words: str | Path) -> None:
    subprocess.run([python, "-m", "pip", *map(str, words)], check=True, env=alone(), timeout=300)


def alone() -> dict[str, str]:
    """Ours without what would lead to the checkout."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def installed(binaries: Path, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    program, *rest = map(str, words)
    return subprocess.run(
        [str(binaries / program), *rest],
        cwd=folder,
        env=alone(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "llama").rglob("*.py")}
    settings = {f"llama/ds_configs/{path.name}" for path in (ROOT / "ds_configs").iterdir()}
    bundled = {f"llama/data/bundled/{p.name}" for p in (ROOT / "llama/data/bundled").iterdir()}
    assert len(settings) > 5 and len(bundled) > 1
    assert held == code | settings | bundled | {"llama/pages/page.html"}


def test_the_commands_from_any_folder(binaries: Path, tmp_path: Path) -> None:
    done = installed(binaries, tmp_path, "llama-lora")
    assert (done.returncode, done.stdout) == (0, listing() + "\n")
    for name in COMMANDS:
        done = installed(binaries, tmp_path, "llama-lora", name, "--help")
        assert done.returncode == 0 and f"usage: llama-lora {name}" in done.stdout, done.stderr


def test_it_is_the_wheel_that_runs(binaries: Path, tmp_path: Path) -> None:
    code = "import llama.train.loop, llama; print(llama.__file__)"
    done = installed(binaries, tmp_path, "python", "-c", code)
    assert Path(done.stdout.strip()).is_relative_to(binaries.parent), done.stderr


@pytest.mark.parametrize(
    "start",
    [
        ["llama-lora", "train"],
        ["python", "-m", "llama", "train"],
        ["python", "-m", "torch.distributed.run", "-m", "llama.commands.train"],
        pytest.param(
            [
                *("python", "-m", "deepspeed.launcher.runner", "--num_gpus", "1"),
                *("--module", "llama.commands.train"),
            ],
            marks=pytest.mark.long,
        ),
    ],
    ids=["llama-lora", "module", "torchrun", "deepspeed"],
)
def test_it_trains_from_any_folder(start: list[str], binaries: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.json", 3)
    words = ["--deepspeed", "lora_float32.json", "--model", "model", "--data", rows.name]
    done = installed(binaries, tmp_path, *start, *words, "--max_steps", "1", "--output_dir", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_lines(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_what_a_user_has_is_looked_at_and_trained_on(binaries: Path, tmp_path: Path) -> None:
    """Rows of two forms, columns by other names, a share held out, and no file of settings."""
    write_model(tmp_path / "model")
    lines = ["question,solution", *(f"twice {n},{2 * n}" for n in range(16))]
    (tmp_path / "MY.csv").write_text("\n".join(lines))
    chat = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "MORE.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    words = ["--columns", "instruction=question,output=solution", "--model", "model"]
    done = installed(binaries, tmp_path, "llama-lora", "data", "MY.csv", *words)
    assert done.returncode == 0 and "MY.csv: 16 rows, alpaca (question, solution)" in done.stdout
    words += ["--data", "MY.csv", "--data", "MORE.jsonl", "--eval_split", "0.1"]
    words += ["--max_steps", "2", "--output_dir", "out"]
    done = installed(binaries, tmp_path, "llama-lora", "train", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"data +\d+ examples of 17 rows, .* rows? held out", done.stderr), done.stderr
    evaluations = [m for m in read_lines(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in m]
    assert [m["step"] for m in evaluations] == [0, 2]
