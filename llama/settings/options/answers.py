"""The line for a flag or key that another trainer has: where it lives here, with the user's own
value in it, ready to type; or what is so here instead."""

from __future__ import annotations

import re
import shlex

import yaml

from llama.settings.options.elsewhere import ELSEWHERE
from llama.settings.options.kinds import Already, Answer, ByValue, Here, Single

LONGEST = 200
"""Characters of a user's value that a line repeats; a placeholder stands for a longer one."""
_PLACE = "VALUE"
_WORDS = {None: "true", "": "true", "yes": "true", "on": "true", "no": "false", "off": "false"}


def row_of(name: str) -> Answer | None:
    """The row of the table for `name`."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    starts = (key for key in ELSEWHERE if key.endswith("*") and name.startswith(key[:-1]))
    return next((ELSEWHERE[key] for key in starts), None)


def chosen(name: str, value: str | None) -> Single | None:
    """What the table says of `name` with this value; None where it says nothing."""
    row = row_of(name)
    if not isinstance(row, ByValue):
        return row
    word = (value or "").lower()
    return row.values.get(_WORDS.get(word or None, word), row.otherwise)


def is_of_value(name: str, value: str | None) -> bool:
    """Whether the table means `name` with just this value, as `adapter: lora`: an option of ours
    may have the name too, and takes other values."""
    row = row_of(name)
    return isinstance(row, ByValue) and row.otherwise is None and chosen(name, value) is not None


def answer(name: str, value: str | None, in_file: bool = False) -> str | None:
    """What goes on from `--name`: in the words of a command line, or of a YAML file. A value is
    repeated where the answer holds it, and nowhere else: it may be a secret."""
    found = chosen(name, value)
    if found is None:
        return None
    if isinstance(found, Here):
        words = _filled(found, value)
        shown = "" if value is None or len(value) > LONGEST else f" {value}"
        return f"{'' if in_file else shown}: here it is {_in_yaml(words) if in_file else words}"
    if isinstance(found, Already):
        return f": so it is here already: {found.why}; leave it out"
    return f": {found.what}"


def in_deepspeed_json(name: str) -> str:
    """`; here it is KEY` where a key of a DeepSpeed JSON has another trainer's name."""
    row = row_of(name)
    if isinstance(row, Here) and row.words.startswith("--override "):
        return f"; here it is {row.words.split()[1].partition('=')[0]}"
    return ""


def _filled(found: Here, value: str | None) -> str:
    """The words for a shell, each quoted where it must be."""
    text = _plain(value)
    if found.whole and text is not None:
        text = re.sub(r"\.0+$", "", text)
        text = text if text.isdecimal() else "N"
    return " ".join(
        shlex.quote(word.replace("{}", _PLACE if text is None else text))
        for word in found.words.split()
    )


def _plain(value: str | None) -> str | None:
    """`value` as one option takes it: a list written as Python, JSON or YAML is joined by commas.
    None where there is none, or it is too long to be repeated."""
    if not value or len(value) > LONGEST:
        return None
    if value[0] == "[" and value[-1] == "]":
        try:
            items = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        if items and all(isinstance(item, str) for item in items):
            return ",".join(items)
    return value


def _in_yaml(words: str) -> str:
    """`--epochs 3` is `epochs: 3`; what --override says is an item of the list `override`."""
    given = shlex.split(words)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    lines = [f"{name[2:]}: {text}" for name, text in pairs if name != "--override"]
    items = [text for name, text in pairs if name == "--override"]
    if items:
        lines.append(f"in the list `override`: {', '.join(items)}")
    return "; ".join(lines)
