"""Every command of the README and of the guides, run as written but for a model and work of a few
kilobytes, and for two processes of this machine where it says eight or several hosts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.pages import shell_lines
from tests.support.ports import free_port
from tests.support.tiny_runs import launched, read_lines, write_model, write_rows

README = (ROOT / "README.md").read_text()
LINES = shell_lines(ROOT / "README.md")
COMMANDS = list(dict.fromkeys(line for line in LINES if "launcher/" in line))
GUIDES = ("recipes", "verify", "choosing", "adapting", "export", "nf4", "quantised")
# Servers are asked by tests/parity/test_check_server.py.
OF_GUIDES = dict.fromkeys(
    line
    for guide in GUIDES
    for line in shell_lines(ROOT / f"docs/{guide}.md")
    if "launcher/" in line and line not in COMMANDS and "--check_server" not in line
)
LONG = (
    *("--method full", "launcher/ablate.py", "launcher/verify.py", "--rows 10000", "--suggest"),
    *("--num_gpus 8", "--hostfile", "--output_dir runs/mine"),
)
"""Commands of the README with one of these take most of a minute together with the others."""
SMALLER = {
    "train": ["--max_steps", "1", "--data", "ROWS.jsonl", "--output_dir", "OUT"],
    "generate": ["--max_new_tokens", "2"],
    "chat": ["--max_new_tokens", "2"],
    "evaluate": ["--template", "alpaca", "--max_new_tokens", "2"],
    "export": ["--output_dir", "OUT"],
    "doctor": ["--size_mb", "1"],
    "benchmark": ["--steps", "1", "--warmup", "0"],
    "plan": [],
    "data": ["--template", "alpaca"],
    "verify": ["--steps", "2", "--layers", "1", "--seq_len", "32"],
    "report": [],
    "combine": [],
    "ablate": [
        *("--precision", "float32", "--method", "lora"),
        *("--rows", "2", "--steps", "2", "--seq_len", "256"),
        *("--data", "ROWS.jsonl", "--eval_data", "ROWS.jsonl"),
    ],
}


def is_long(command: str) -> bool:
    return any(part in command for part in LONG)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and a run whose adapter the README's commands can name."""
    folder = tmp_path_factory.mktemp("readme")
    write_model(folder / "MODEL")
    rows = write_rows(folder / "ROWS.jsonl", 5)
    (folder / "PROMPTS.txt").write_text("one\ntwo\n")
    (folder / "QUESTIONS.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    arguments = ["--model", folder / "MODEL", "--data", rows, "--max_steps", "1"]
    settings = ["--deepspeed", "ds_configs/lora.json", "--output_dir", folder / "RUN"]
    done = launched("python", "train.py", *map(str, settings + arguments))
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "RUN", folder / "RUN2")
    return folder


def smaller(command: str, folder: Path, out: Path) -> list[str]:
    """The command's words, its placeholders filled in, and what makes it small added."""
    several = "" if "doctor.py" in command else "--num_gpus 2"
    words = shlex.split(command.replace("--hostfile hosts", several))
    script = next(Path(word).stem for word in words if word.startswith("launcher/"))
    extra = ["--model", "MODEL", *SMALLER[script]]
    if script == "report":
        extra = []  # it reads runs, and takes no model
    if script == "doctor":
        extra += ["--master_port", str(free_port())]
    for option, value in zip(extra[::2], extra[1::2], strict=True):
        if option not in words:
            words += [option, value]
    places = {
        name: folder / name for name in ("MODEL", "ROWS.jsonl", "PROMPTS.txt", "QUESTIONS.jsonl")
    }
    places |= {"OUT": out, "runs/mine": out}
    places |= {name: folder / name for name in ("RUN", "RUN2", "RUN/adapter")}
    places |= {name: out.with_name(name) for name in ("two.html", "ANSWERS.jsonl")}
    for name in ("llama-7b", "llama-3-8b", "llama-3.1-8b", "llama-13b"):
        places[name] = "llama-3.2-1b"  # as a plan it is the same work for each of more blocks
    words = ["2" if word == "8" else word for word in words]
    parts = [word.partition(":") for word in words]  # RUN:0.7 is a run and its weight
    return [f"{places.get(name, name)}{colon}{weight}" for name, colon, weight in parts]


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    "command",
    [
        *(line for line in COMMANDS if not is_long(line)),
        *(pytest.param(line, marks=pytest.mark.long) for line in COMMANDS if is_long(line)),
        *(pytest.param(line, marks=pytest.mark.long) for line in OF_GUIDES),
    ],
)
def test_the_command_runs(command: str, files: Path, tmp_path: Path) -> None:
    words = smaller(command, files, tmp_path / "out")
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "train.py" in command:
        assert read_lines(tmp_path / "out" / "metrics.jsonl")[0]["step"] in (0, 1)


@pytest.mark.slow
@pytest.mark.long
def test_the_plan_that_pages_quote_is_the_one_that_is_printed() -> None:
    """The README's, whole; and the rows for which another page says that there is room."""
    (command,) = (line for line in COMMANDS if "plan.py --model llama-7b" in line)
    recipes = (ROOT / "docs" / "recipes.md").read_text()
    assert command in recipes
    done = launched("python", "plan.py", *shlex.split(command)[2:])
    assert f"```\n{done.stdout}```\n" in README, done.stdout + done.stderr
    (rows,) = re.findall(r"There is room for (\d+) rows at a time", recipes)
    assert f"fits at most       {rows} rows of 1024 in a micro-batch" in done.stdout


def test_the_readme_names_no_file_that_is_not_there() -> None:
    named = re.findall(r"`((?:tests|ds_configs|launcher)/[\w/]+\.\w+)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    linked = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_the_make_targets_exist() -> None:
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{t}:", makefile, flags=re.MULTILINE) for t in targets)
