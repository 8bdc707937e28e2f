"""What may be said of a flag or key that another trainer has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Here:
    """An option or DeepSpeed key of ours says the same: `{}` in `words` is the user's value."""

    words: str
    example: str = "true"
    """A value as users of the name give it."""
    whole: bool = False
    """Whether ours takes whole numbers alone, where theirs also has 3.0."""


@dataclass(frozen=True)
class Already:
    """It is so here without being asked for."""

    why: str


@dataclass(frozen=True)
class Instead:
    """Nothing here says it: `what` is so, and what to do."""

    what: str


Single = Here | Already | Instead


@dataclass(frozen=True)
class ByValue:
    """It depends on the value: a bare flag is `true`, `yes` too; `no` is `false`."""

    values: Mapping[str, Single] = field(default_factory=dict)
    otherwise: Single | None = None
    """None where the name with another value is none of theirs."""


Answer = Single | ByValue
