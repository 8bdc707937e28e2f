"""What an option's field says of a run that is continued, or spread over ranks.

A marked field decides what a step computes: a run is continued only with the same, and all ranks
must have been given the same. Written as `field(default=..., metadata=BY_VALUE)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

BY_VALUE = {"decides": "by value"}
"""It decides by what it is set to."""
BY_CONTENT = {"decides": "by content"}
"""It names something outside and decides by what that holds: the same file may lie elsewhere on
another host, or another under the same name."""

BARE = {"bare": "true"}
"""Its name may stand alone, and then means `true`, as that of a switch does; it takes other words
too."""

BY_KEY = {"merged": "by key"}
"""A list of `KEY=VALUE` of which each key is a setting of its own: the command line adds to a
file's list, and wins where both have a key."""

POSITIONAL = {"positional": True}
"""Its values may stand on the command line without its name; a command has one such option, a
list."""


def marked(options: Any, mark: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(dotted name, value)` of each field of `options` that has `mark`, nested ones included."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from marked(value, mark, f"{prefix}{field.name}.")
        elif dict(field.metadata) == mark:
            yield prefix + field.name, value
