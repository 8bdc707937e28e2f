"""Names for content: equal where what they are made of is, and never otherwise."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from llama.launch.packages import TOKENISING

FORMAT = 1
"""Of the entries; another one makes them anew."""
READING = ("pyarrow", "jinja2")
_ROOMS = ("data", "tokenizer")
"""Folders of this package whose code makes tokens of rows."""


def key_of(**parts: Any) -> str:
    """SHA-256, in hex, of `parts` by name, of the code that makes tokens here and of the packages
    that it calls."""
    parts = {"format": FORMAT, "code": _code(), "packages": _packages(), **parts}
    return hashlib.sha256(canonical(parts).encode("utf-8", "surrogatepass")).hexdigest()


def canonical(value: Any) -> str:
    """Text that is the same for equal values in every process; of an object of a class, what it is
    pickled as, which is what another process makes the same object of."""
    if value is None or isinstance(value, bool | int | float | str):
        return json.dumps(value)
    if isinstance(value, bytes):
        return f"bytes:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, dict):
        pairs = sorted(f"{canonical(key)}:{canonical(item)}" for key, item in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, set | frozenset):
        return f"set({','.join(sorted(map(canonical, value)))})"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, re.Pattern):
        return f"pattern({canonical([value.pattern, value.flags])})"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return f"object{canonical(value.__reduce_ex__(4))}"


@lru_cache(maxsize=1)
def _code() -> str:
    """SHA-256 of the source of `_ROOMS`."""
    package = Path(__file__).resolve().parents[2]
    whole = hashlib.sha256()
    for file in sorted(file for room in _ROOMS for file in (package / room).rglob("*.py")):
        whole.update(f"{file.relative_to(package)}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _packages() -> dict[str, str]:
    return {name: metadata.version(name) for name in (*TOKENISING, *READING)}
