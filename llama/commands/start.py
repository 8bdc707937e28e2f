"""How a command begins, whatever started it: `llama-lora NAME`, `python -m llama NAME`,
`python launcher/NAME.py`, or a launcher's `--module llama.commands.NAME`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from llama.commands.table import COMMANDS, Command
from llama.files.inputs import nearest
from llama.launch.program import ended_in_order, loading, run_program
from llama.launch.typed import offer
from llama.notes import note

PROGRAM = "llama-lora"
USERS_MISTAKE = 2
_ELSEWHERE = {
    "merge": "export --format hf",
    **dict.fromkeys(("sft", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("inference", "infer", "predict"), "generate"),
}
"""What other trainers call a command, and what it is here."""
_OF_PYPI = {"yaml": "pyyaml"}
"""Packages that are installed by another name than they are imported by."""


def program(name: str, prog: str) -> NoReturn:
    """Run one command by the words of `sys.argv`, and end the process with its status. `prog` is
    what its `--help` calls it."""
    run_program(lambda: run(name, prog, sys.argv[1:]))


def main() -> NoReturn:
    """`llama-lora COMMAND ...`: run the command, and end the process with its status."""
    run_program(lambda: chosen(sys.argv[1:]))


def chosen(words: list[str]) -> int:
    """Run the command that the first of `words` names, and give its exit status; with none, list
    the commands."""
    # deepspeed --module writes the number of the process before whatever the user has written
    ranks = [word for word in words[:1] if word.startswith("--local_rank=")]
    name, *rest = words[len(ranks) :] or ["--help"]
    if name in ("-h", "--help", "-V", "--version"):
        print(listing())
        return 0
    if name not in COMMANDS:
        here = _ELSEWHERE.get(name)
        meant = f"; here it is {here}" if here else nearest(name, COMMANDS)
        found = f"expected a command, found {name!r}{meant}"
        note(f"error: {found} (commands: {', '.join(COMMANDS)})")
        return USERS_MISTAKE
    return run(name, f"{PROGRAM} {name}", [*ranks, *rest])


def listing() -> str:
    """The version, and every command with what it does."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"{PROGRAM} {_version()}",
            f"usage: {PROGRAM} COMMAND [options]; {PROGRAM} COMMAND --help lists its options",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
        ]
    )


def run(name: str, prog: str, words: list[str]) -> int:
    """Run the command `name` with the options in `words`, and give its exit status. A package that
    is missing is the user's mistake, one line and 2."""
    offer(COMMANDS)
    try:
        return _run(COMMANDS[name], prog, words)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if importlib.util.find_spec(package or "llama") is not None:
            raise  # it is there, and lacks a part: no mistake of the user's
        note(f"error: {_missing(package)}")
        return USERS_MISTAKE


def _run(command: Command, prog: str, words: list[str]) -> int:
    with loading():
        if command.in_ranks:
            from llama.launch.parent import follow_launcher
        else:
            follow_launcher = None
        from llama.settings.options import run_command

        cls = _named(command.options)

    def begin(options: Any) -> int | None:
        if follow_launcher is not None:
            follow_launcher()
        with loading():  # after the options: a typo is answered without torch
            function = _named(command.function)
        with contextlib.nullcontext() if command.in_ranks else ended_in_order():
            return function(options)

    summary = command.summary[:1].upper() + command.summary[1:]
    return run_command(begin, cls, prog, summary, words)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _missing(package: str) -> str:
    root = Path(__file__).parents[2]
    source = str(root) if (root / "pyproject.toml").is_file() else PROGRAM
    name = _OF_PYPI.get(package, package)
    return (
        f"the package {name} is not installed in this Python, {sys.executable}: "
        f"{sys.executable} -m pip install {source} installs all that is needed"
    )


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "(not installed: run from its folder)"
