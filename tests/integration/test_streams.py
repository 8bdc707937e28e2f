"""The commands, with streams as cron, a full disk, a pipe or an old terminal leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.tiny_runs import (
    deepspeed_json,
    merged,
    of_one_thread,
    write_json,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_model(folder / "model")
    write_rows(folder / "rows.json")
    write_json(folder / "ds.json", deepspeed_json())
    return folder


TRAIN = "train.py --deepspeed ds.json --data rows.json --max_steps 2 --output_dir $OUT"
EVALUATE = "evaluate.py --data rows.json"
GENERATE = "generate.py --max_new_tokens 8"


def shell(
    sound: Path, out: Path, command: str, redirected: str, *words: str, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command on the sound files, its streams redirected by a shell."""
    line = f'"$0" {ROOT / "launcher"}/{command} --model model "$@" {redirected}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *words],
        cwd=sound,
        env=of_one_thread() | {"OUT": str(out)} | variables,
        capture_output=True,
        timeout=300,
        check=False,
    )


OTHERS: list[tuple[str, list[str], int]] = [
    (">&-", [], 0),
    ("2>&-", ["--json"], 0),
    ("2>/dev/full", [], 0),
    ("2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", [], 0),
    (">/dev/full", ["--json"], 1),
]
"""Streams that are closed or full one at a time."""


@pytest.mark.parametrize(
    ("redirected", "words", "status"),
    [
        ("<&- >&- 2>&-", [], 0),
        (">&- 2>&-", ["--json"], 1),
        *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS),
    ],
)
def test_a_run_comes_to_its_end(
    redirected: str, words: list[str], status: int, sound: Path, tmp_path: Path
) -> None:
    done = shell(sound, tmp_path / "out", TRAIN, redirected, *words)
    assert done.returncode == status, done
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "out/adapter/adapter_model.safetensors").exists()
    assert b"Traceback" not in done.stderr and b"Logging error" not in done.stderr
    if redirected.startswith(">/dev/full"):
        assert done.stderr.splitlines()[-1].startswith(b"error: standard output: No space left")


@pytest.mark.parametrize("command", [EVALUATE, GENERATE + " --prompt a"])
def test_a_result_that_was_lost(command: str, sound: Path, tmp_path: Path) -> None:
    done = shell(sound, tmp_path, command, ">/dev/full")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith(b"error: ")]
    assert lines == [b"error: standard output: No space left on device: output is lost"]
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", [EVALUATE, TRAIN, GENERATE])
def test_a_mistake_is_one_whatever_is_closed(command: str, sound: Path, tmp_path: Path) -> None:
    done = shell(sound, tmp_path, command, "2>&-", "--tokenizr", "x")
    assert (done.returncode, done.stdout) == (2, b"")


OLD_TERMINALS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("terminal", OLD_TERMINALS)
def test_a_terminal_of_few_letters(terminal: dict[str, str], sound: Path, tmp_path: Path) -> None:
    prompt = "caf\xe9 \u6f22"
    usual = shell(sound, tmp_path, GENERATE, "", "--json", "--prompt", prompt, LC_ALL="C.UTF-8")
    other = shell(sound, tmp_path, GENERATE, "", "--json", "--prompt", prompt, **terminal)
    text = shell(sound, tmp_path, GENERATE, "", "--prompt", prompt, **terminal)
    assert [done.returncode for done in (usual, other, text)] == [0, 0, 0], (other, text)
    found, expected = json.loads(other.stdout), json.loads(usual.stdout)
    assert found["prompt"] == prompt
    assert found["text"] == expected["text"] and not expected["text"].isascii()


def test_files_with_letters_in_the_c_locale(sound: Path, tmp_path: Path) -> None:
    """Names are UTF-8 there too."""
    out = tmp_path / "caf\xe9"
    rows = write_rows(tmp_path / "\u6f22.json")
    done = shell(sound, out, TRAIN, "", "--data", str(rows), **OLD_TERMINALS[-1])
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "run.json").read_text())["options"]["output_dir"] == str(out)


@pytest.mark.parametrize(
    ("command", "option"), [(GENERATE, "prompt"), (TRAIN, "output_dir"), (EVALUATE, "data")]
)
def test_bytes_that_are_no_text(command: str, option: str, sound: Path, tmp_path: Path) -> None:
    word = os.fsdecode(b"caf\xe9")
    words = merged(command.split()[1:], [f"--{option}", word])
    done = shell(sound, tmp_path, command.split()[0], "", *words)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if b"not UTF-8" in line)
    assert line.startswith(f"error: --{option}: not UTF-8 at byte 3".encode())
