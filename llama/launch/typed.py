"""Another command of this program as its user would type it now: in the form in which this one was
started, from the folder in which it was."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

_INSTALLED = "llama-lora"
_offered: set[str] = set()


def offer(commands: Iterable[str]) -> None:
    """Tell which commands there are."""
    _offered.update(commands)


def is_offered(command: str) -> bool:
    return command in _offered


def typed(command: str, *words: str | Path) -> str:
    """The line for a shell that runs `command` with the arguments `words`."""
    return shlex.join([*_start(Path(sys.argv[0]), command), *map(str, words)])


def _start(script: Path, command: str) -> list[str]:
    """`script` is what was started: one of `launcher/`, the installed program, or a module."""
    beside = script.with_name(f"{command}.py")
    if script.parent.name == "launcher" and beside.is_file():
        return [_python(), str(nearer(beside))]
    if script.name == _INSTALLED:
        return [_named(script), command]
    return [_python(), "-m", "llama", command]


def _python() -> str:
    """`python`, where that is the one that runs here."""
    return _named(Path(sys.executable).with_name("python"))


def _named(program: Path) -> str:
    """The name of `program` where the shell finds it by that, else its path."""
    found = shutil.which(program.name)
    if found and os.path.abspath(found) == os.path.abspath(program):
        return program.name
    return str(nearer(program))


def nearer(path: Path) -> Path:
    """`path` as seen from the folder that one stands in, where it lies below that."""
    full, here = Path(os.path.abspath(path)), Path.cwd()
    return full.relative_to(here) if full.is_relative_to(here) else full
