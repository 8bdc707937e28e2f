"""Opening a safetensors file that somebody else wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llama.errors import UserError
from llama.files.inputs import filled_file_problem
from llama.files.kinds import SAFETENSORS

FLOATS = ("F16", "BF16", "F32", "F64")
"""Its types of floating-point numbers."""


def open_safetensors(path: Path) -> Any:
    """The open file, no tensor read. safetensors checks that its header fits in the file, covers it
    without gap or overlap, and is at most 100 MB. Raises UserError."""
    if problem := filled_file_problem(path, (SAFETENSORS,)):
        raise UserError(problem)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: not a whole safetensors file: {reason[:200]}") from None
