"""What the user is told before a run has its own report: once, by the first rank."""

from __future__ import annotations

import os
import sys


def is_first_rank() -> bool:
    """By what the launcher said, before any rank has met another."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """A line on standard error."""
    if is_first_rank():
        print(text, file=sys.stderr, flush=True)
