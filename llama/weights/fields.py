"""Sizes out of somebody else's JSON or metadata: typed, checked, every problem kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llama.errors import UserError
from llama.files.inputs import filled_file_problem
from llama.files.kinds import JSON
from llama.notes import note

JSON_LIMIT = 1 << 26
"""Bytes; the index of a model of a trillion parameters has a few million."""
_SHOWN = 8
"""Fields that one line names."""


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in `path`. Raises UserError naming the file, and the line where it breaks."""
    if problem := filled_file_problem(path, (JSON,)):
        raise UserError(problem)
    if (size := path.stat().st_size) > JSON_LIMIT:
        raise UserError(f"{path}: {size:,} bytes are too many for a JSON file of a model")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not JSON: not UTF-8 text") from None
    except (RecursionError, ValueError):
        raise UserError(f"{path}: not JSON: nested too deeply, or a number too long") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


class Fields:
    """Reads fields of a mapping. A bad one adds a line to `problems` and gives a stand-in value,
    so that all are found in one go; a null counts as absent. `prefix` begins every key."""

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix
        self.problems: list[str] = []
        self._known: set[str] = set()

    def given(self, key: str) -> object:
        """The value as it stands, or None."""
        self.know(key)
        return self.values.get(self.prefix + key)

    def know(self, *keys: str) -> None:
        """Count fields as read: they are acted upon, or change nothing here."""
        self._known.update(self.prefix + key for key in keys)

    def unread(self) -> list[str]:
        """The keys that begin with the prefix, hold something and were neither asked for nor
        declared known."""
        return [
            key
            for key, value in self.values.items()
            if key.startswith(self.prefix) and key not in self._known and value not in (None, {})
        ]

    def note_unread(self, *harmless: str) -> None:
        """Name in one line the fields that nothing here acts upon, `harmless` ones left out."""
        self.know(*harmless)
        if unread := self.unread():
            count = f"{len(unread)} field{'s' if len(unread) > 1 else ''}"
            note(f"{self.where}: {count} not known here: {named_values(self.values, unread)}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; required where there is no default."""
        value = self.given(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self._bad(key, "a positive integer")
        return 1

    def number(self, key: str, default: float | None = None, zero: bool = False) -> float:
        """A positive finite number, or 0 where `zero` allows it; required where there is no
        default."""
        value = self.given(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300:
            if value or zero:
                return float(value)
        self._bad(key, "a number of at least 0" if zero else "a positive number")
        return 1.0

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.given(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self._bad(key, "true or false")
        return default

    def refuse(self, key: str, harmless: tuple[object, ...] = ()) -> None:
        """Note a field whose presence would change the arithmetic in a way not supported here."""
        value = self.given(key)
        if value not in (None, False, 0, [], {}, *harmless):
            self.problems.append(
                f"{self.where}: {self.prefix}{key} = {shorten(value)} is not supported"
            )

    def _bad(self, key: str, expected: str) -> None:
        value = self.given(key)
        found = "it is missing" if value is None else f"found {shorten(value)}"
        self.problems.append(f"{self.where}: {self.prefix}{key} must be {expected}; {found}")


def named_values(values: Mapping[str, object], keys: Iterable[str]) -> str:
    """`a = 1, b = "x"`, of many the first few and a count."""
    keys = list(keys)
    shown = ", ".join(f"{key} = {shorten(values[key])}" for key in keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more"


def shorten(value: object) -> str:
    """A value as one short piece of text for a message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
