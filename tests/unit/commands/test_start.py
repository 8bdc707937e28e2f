"""Every command by every name it is started by, and what a first start gets wrong."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama.commands.start import chosen, listing
from llama.commands.table import COMMANDS
from llama.settings.options.declare import declared
from llama.settings.options.shared import names_of_all_commands
from tests.support.model_files import ROOT

IN_RANKS = [name for name, command in COMMANDS.items() if command.in_ranks]
SCRIPTS = sorted(path.stem for path in (ROOT / "launcher").glob("*.py") if path.stem != "installed")


def started(
    *words: str | Path, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_the_table_names_what_is_there(name: str) -> None:
    command = COMMANDS[name]
    module, _, options = command.options.partition(":")
    cls = getattr(importlib.import_module(module), options)
    assert dataclasses.is_dataclass(cls)
    assert {option.name for option in declared(cls)} <= names_of_all_commands()
    module, _, function = command.function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--version"]])
def test_the_commands_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(words) == 0
    assert capsys.readouterr().out == listing() + "\n"
    lines = [line.split() for line in listing().splitlines()[2:]]
    assert [line[0] for line in lines] == list(COMMANDS)
    assert all(len(line) > 2 for line in lines)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trian", "found 'trian'; did you mean train? (commands: train, data, "),
        ("merge", "found 'merge'; here it is export --format hf (commands: train, "),
        ("qqq", "found 'qqq' (commands: train, "),
        ("--deepspeed", "expected a command, found '--deepspeed'"),
    ],
)
def test_no_command(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen([word, "--seed", "1"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown and shown.count("\n") == 1


def test_a_typo_of_each_command_is_answered_without_torch() -> None:
    """The words of every command are read, and one that is wrong is told, before torch loads."""
    code = (
        "import sys; from llama.commands.start import chosen; "
        f"print([chosen([name, '--qq']) for name in {list(COMMANDS)}], "
        "sorted({'torch', 'deepspeed', 'matplotlib'} & set(sys.modules)))"
    )
    done = started("-c", code)
    assert done.stdout.strip() == f"{[2] * len(COMMANDS)} []", done.stderr
    assert done.stderr.count("error: --qq: unknown option") == len(COMMANDS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_a_command(name: str) -> None:
    done = started(f"launcher/{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py")
    summary = COMMANDS[name].summary
    assert summary[:1].upper() + summary[1:] in done.stdout


@pytest.mark.parametrize("name", IN_RANKS)
@pytest.mark.parametrize("before", [[], ["--local_rank=0"]])
def test_the_modules_that_launchers_start(name: str, before: list[str]) -> None:
    """`deepspeed --module` writes --local_rank before the user's words."""
    for module in ([f"llama.commands.{name}"], ["llama", name]):
        words = [module[0], *before, *module[1:], "--help"]
        done = started("-m", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: llama-lora {name}")


def without(tmp_path: Path, package: str) -> str:
    """A PYTHONPATH on which `package` is not to be found, though it is installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder):\n"
        "        self.finder = finder\n"
        "    def __getattr__(self, name):\n"
        "        return getattr(self.finder, name)\n"
        "    def find_spec(self, name, *args, **kwargs):\n"
        f"        hidden = name.partition('.')[0] == {package!r}\n"
        "        return None if hidden else self.finder.find_spec(name, *args, **kwargs)\n"
        "sys.meta_path[:] = map(Without, sys.meta_path)\n"
    )
    return os.pathsep.join([str(tmp_path), str(ROOT)])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_in_which_it_is_not_installed(script: str, tmp_path: Path) -> None:
    done = started(ROOT / f"launcher/{script}.py", "--help", PYTHONPATH=without(tmp_path, "llama"))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"error: llama-lora is not installed in this Python, {sys.executable}: " in done.stderr
    assert f"pip install {ROOT}" in done.stderr


@pytest.mark.parametrize(
    ("package", "name"),
    [("torch", "torch"), ("deepspeed", "deepspeed"), ("yaml", "pyyaml"), ("psutil", "psutil")],
)
def test_a_package_that_is_missing(package: str, name: str, tmp_path: Path) -> None:
    words = ["train", "--deepspeed", "lora", "--output_dir", str(tmp_path / "run")]
    done = started("-m", "llama", *words, PYTHONPATH=without(tmp_path, package))
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: the package {name} is not installed")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_part_of_this_program_that_is_missing_is_a_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = dataclasses.replace(COMMANDS["report"], function="llama.no_such_room:report")
    monkeypatch.setitem(COMMANDS, "report", broken)
    with pytest.raises(ModuleNotFoundError):
        chosen(["report", "RUN"])
