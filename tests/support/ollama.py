"""How Ollama reads what it is given, without Ollama: a Modelfile by the rules of its
parser/parser.go (of v0.33), and a template by Go itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    *("from", "license", "template", "system", "adapter", "draft", "renderer", "parser"),
    *("parameter", "message", "requires"),
}
_RENDER = Path(__file__).parent / "go" / "render.go"
_BLANK = " \t"


def commands(text: str) -> list[tuple[str, str]]:
    """Each instruction's name in lower case, a parameter's own in place of `parameter`, and its
    value. AssertionError where Ollama would refuse the file."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest := rest.lstrip(" \t\n"):
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, rest = _word(rest)
        assert name.lower() in COMMANDS, name
        if name.lower() == "parameter":
            name, rest = _word(rest)
        value, rest = _value(rest)
        found.append((name.lower(), value))
    assert any(name == "from" for name, _ in found), "no FROM line"
    return found


def _word(text: str) -> tuple[str, str]:
    end = next(i for i, letter in enumerate(text) if letter in _BLANK)
    assert text[:end].replace("_", "").isalnum(), text[:end]
    return text[:end], text[end:].lstrip(_BLANK)


def _value(text: str) -> tuple[str, str]:
    """Up to the end of the first line with which all that came before is a whole text. What Go
    calls not printable is dropped, but for white space within quotes."""
    kept = ""
    for at, letter in enumerate(text):
        whole = _unquoted(kept.strip())
        if letter == "\n" and whole is not None:
            return whole, text[at:]
        if letter.isprintable() or letter in "\n\t":
            kept += letter
    whole = _unquoted(kept.strip())
    assert whole is not None, f"ends within quotes: {kept}"
    return whole, ""


def _unquoted(text: str) -> str | None:
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text


def rendered(asked: Sequence[tuple[str, Sequence[Any]]]) -> list[str]:
    """What Go makes of each template and conversation."""
    given = [{"Template": template, "Messages": messages} for template, messages in asked]
    words = ["go", "run", str(_RENDER)]
    run = subprocess.run(words, input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)
