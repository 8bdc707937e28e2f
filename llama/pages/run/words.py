"""Numbers and settings of a run as a reader is shown them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from llama.files.json_text import json_text
from llama.pages.run.files import number

NONE = "-"
"""Shown for what is not recorded."""
GIB = 1 << 30


def loss(value: Any) -> str:
    found = number(value)
    return NONE if found is None else f"{found:.4f}"


def count(value: Any) -> str:
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def gib(value: Any) -> str:
    """Bytes."""
    found = number(value)
    return NONE if found is None else f"{found / GIB:.2f} GiB ({found:,.0f} bytes)"


def seconds(value: Any) -> str:
    found = number(value)
    if found is None:
        return NONE
    if found < 60:
        return f"{found:.3g} s"
    hours, rest = divmod(int(found), 3600)
    return (
        f"{hours}:{rest // 60:02d}:{rest % 60:02d} h"
        if hours
        else f"{rest // 60}:{rest % 60:02d} min"
    )


def any_value(value: Any) -> str:
    """Of run.json, as one line."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value)) or NONE
    return json_text(value, ensure_ascii=False)


def command(words: Any) -> str:
    """The words of a command line as they would be typed: without the interpreter's own folder,
    and without Python before a script of the environment's."""
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        return ""
    first, *rest = words
    if os.path.basename(first).startswith("python"):
        first = "python"
        if rest and os.path.basename(os.path.dirname(rest[0])) == "bin":
            first, *rest = os.path.basename(rest[0]), *rest[1:]
    return shlex.join([first, *rest])


def from_folder(paths: Any, folder: Any) -> Sequence[str]:
    """Paths, those below `folder` as they are named from there."""
    found = [str(path) for path in paths] if isinstance(paths, list) else []
    start = f"{folder}{os.sep}" if isinstance(folder, str) and folder else None
    return [path.removeprefix(start) if start else path for path in found]
