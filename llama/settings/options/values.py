"""From the text of an option to a value of its type."""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from llama.files.inputs import nearest
from llama.settings.options.declare import Option

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def value_of(option: Option, texts: Sequence[str | None]) -> Any:
    """The value of `option`; None among `texts` is a YAML null. Raises `ValueError` with what was
    expected and what was found."""
    if None in texts:
        if option.optional:
            return None
        if option.repeated and texts == [None]:
            return []
        raise ValueError("expected a value, found nothing")
    given = [text for text in texts if text is not None]
    if option.repeated:
        (kind,) = typing.get_args(option.kind)
        if kind is Path:
            given = [part for text in given for part in _paths(text)]
        return [_SCALARS[kind](text) for text in given]
    origin = typing.get_origin(option.kind)
    if origin is tuple:
        of_pairs = typing.get_origin(typing.get_args(option.kind)[0]) is tuple
        return _pairs(given) if of_pairs else _names(given)
    if len(given) != 1:
        raise ValueError(f"expected one value, found a list of {len(given)}")
    if origin is Literal:
        return _choice(given[0], typing.get_args(option.kind))
    return _SCALARS[option.kind](given[0])


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    names = tuple(part.strip() for text in texts for part in text.split(","))
    if not all(names):
        raise ValueError(f"expected names joined by commas, found {','.join(texts)!r}")
    return names


def _pairs(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`output=answer` and the like, each name on the left once."""
    pairs: dict[str, str] = {}
    for text in _names(texts):
        new, _, old = (part.strip() for part in text.partition("="))
        if not (new and old):
            raise ValueError(f"expected NEW=OLD, as output=answer, found {text!r}")
        if new in pairs:
            raise ValueError(f"{new} is given twice; keep one")
        pairs[new] = old
    return tuple(pairs.items())


def _choice(text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        hint = nearest(text, choices)
        raise ValueError(f"expected one of {', '.join(choices)}, found {text!r}{hint}")
    return text


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"expected an integer, found {text!r}")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"expected a finite number, found {text!r}")
    return float(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def _paths(text: str) -> list[str]:
    """Paths joined by commas, or one that has a comma in its name."""
    return [text] if os.path.exists(text) else text.split(",")


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"expected a path, found {text!r}")
    return Path(text)


_SCALARS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: _integer,
    float: _number,
    bool: _boolean,
    Path: _path,
}
