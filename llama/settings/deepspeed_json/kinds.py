"""What may be said of a key of a DeepSpeed JSON: the values that it takes, or why it takes none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union


@dataclass(frozen=True)
class Kind:
    """The values that a key takes, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Refused:
    """A key that DeepSpeed knows and this trainer does not pass on, whatever it asks for."""

    reason: str
    idle: tuple[Any, ...] = ()
    """Values, beside null, false and what is off, with which it asks for nothing."""
    idle_keys: tuple[str, ...] = ()
    """Of a section, keys that ask for nothing by themselves."""


@dataclass(frozen=True)
class Unused:
    """A key about something that is done anyway or not there: taken with any value, and said."""

    reason: str


Table = dict[str, Union[Kind, Refused, Unused, "Table"]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(least: int, most: float = math.inf) -> Kind:
    """Integers from `least` to `most`."""
    expected = f"an integer of at least {least}"
    if most < math.inf:
        expected = f"an integer from {least} to {most}"
    return Kind(expected, lambda value: _is_integer(value) and least <= value <= most)


def choice(*choices: str) -> Kind:
    """One of these words."""
    return Kind("one of " + ", ".join(choices), lambda value: value in choices)


BOOL = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
POSITIVE = Kind("a finite number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = Kind("a finite number of at least 0", lambda v: _is_number(v) and v >= 0)
SHARE = Kind("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
COUNT = integer(1)
NOT_NEGATIVE_COUNT = integer(0)
ELEMENTS = Kind(  # 5e8 is how DeepSpeed's own pages write it
    "a whole number of elements above 0", lambda v: _is_number(v) and v >= 1 and v == int(v)
)
ELEMENTS_OR_NONE = Kind(
    "a whole number of elements of at least 0", lambda v: _is_number(v) and v >= 0 and v == int(v)
)
EVEN_ELEMENTS = Kind(
    "an even number of elements above 0", lambda v: ELEMENTS.accepts(v) and v % 2 == 0
)
BETAS = Kind(
    "two numbers from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(b) and 0 <= b < 1 for b in v),
)
NAMES = Kind("a list of text", lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)))
TRUE = Kind("true", lambda value: value is True)
