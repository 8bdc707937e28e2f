"""What is shown of a model before and after its training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A prompt, and the model's answers before and after training."""

    rows: str
    """Which rows it is of, as a heading."""
    prompt: str
    before: str
    after: str
