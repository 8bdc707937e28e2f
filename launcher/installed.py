"""What the scripts beside this one begin with: the program, or how to install it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn


def program(name: str) -> NoReturn:
    """Run the command `name`. A Python in which this project is not installed says so in one line
    and ends with 2."""
    try:
        from llama.commands.start import program
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "llama":
            raise
        print(f"error: {_how_to_install()}", file=sys.stderr)
        sys.exit(2)
    program(name, f"{name}.py")


def _how_to_install() -> str:
    root = Path(__file__).resolve().parents[1]
    is_made = (root / ".venv" / ".installed").is_file()
    make = "" if is_made else f"make -C {root} install && "
    return (
        f"llama-lora is not installed in this Python, {sys.executable}: "
        f"{make}source {root}/.venv/bin/activate, or {sys.executable} -m pip install {root}"
    )
