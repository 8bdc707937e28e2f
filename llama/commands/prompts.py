"""The prompts of `generate`: of the command line, of a file, of standard input."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.assembly.adapter import Opened
from llama.data.fields import unencodable
from llama.data.records import TwiceError, loads
from llama.errors import UserError, raise_if
from llama.files.inputs import decoded
from llama.files.outside import read_bytes
from llama.notes import note
from llama.settings import GenerateOptions
from llama.tokenizer.base import Message, Template, Tokenizer
from llama.weights.fields import shorten

STANDARD_INPUT = "-"
WANTED = "a text with one prompt a line, or JSONL with a prompt in each object"
GIVE = "give JSONL with a prompt in each object, or plain text"
MOST_BYTES = 1 << 30
_LIKE_JSON = re.compile(r"""\s*(?:\{\s*(["'])[^"']*\1\s*:|\[\s*\{\s*["']|(?:\{|\[+)\s*$)""")
"""A first line that means to be JSON: no `[INST]`, no `{name}` to fill in, no `["a"] in Go`."""


@dataclass(frozen=True)
class Prompt:
    """A text, and where it comes from, for lines about it."""

    text: str
    place: str


def read_prompts(options: GenerateOptions) -> list[Prompt]:
    """All prompts in order, those of the file last. Raises `UserError` with everything that is
    wrong."""
    given = [
        Prompt(_standard_input(), "standard input") if text == STANDARD_INPUT else Prompt(text, "")
        for text in options.prompt
    ]
    return given if options.prompt_file is None else given + prompts_of_file(options.prompt_file)


def _standard_input() -> str:
    """The whole of it as one text, without the line's end that a shell puts behind it."""
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"standard input: more than {MOST_BYTES:,} bytes are no prompt")
    return _text(data, "standard input").removesuffix("\n").removesuffix("\r")


def prompts_of_file(path: Path, known: Sequence[str] = ()) -> list[Prompt]:
    """Those of a file alone; `known` are fields of objects that need not be read. Raises
    `UserError` as `read_prompts` does."""
    if str(path) == STANDARD_INPUT:
        name, data = "standard input", sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        name, data = str(path), read_bytes(path, WANTED, MOST_BYTES)
    text = _text(data, name)
    lines = [
        (number, line.removesuffix("\r"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"{name}: holds no prompts; give {WANTED}")
    if (objects := _objects(name, text, lines)) is not None:
        return _of_objects(name, objects, known)
    return [Prompt(line, f"{name}: line {number}") for number, line in lines]


def _text(data: bytes, name: str) -> str:
    text = decoded(data, name, "; save it as UTF-8")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{name}: line {line}: holds a NUL character")
    return text


def _objects(name: str, text: str, lines: list[tuple[int, str]]) -> list[tuple[str, Any]] | None:
    """Each object of `text`, or what stands in its place, with the place; None where `text` is no
    JSON. Raises `UserError` where it only looks like some: the model would be asked braces."""
    number, first = lines[0]
    begins = _loaded(first, f"{name}: line {number}")
    if isinstance(begins, dict):
        places = [(f"line {number}", line) for number, line in lines]
        return [(place, _loaded(line, f"{name}: {place}")) for place, line in places]
    whole = _loaded(text, name)
    if isinstance(whole, list):
        return [(f"row {row}", value) for row, value in enumerate(whole, start=1)]
    if isinstance(whole, dict):
        raise UserError(f"{name}: line {number}: begins one JSON object over several lines; {GIVE}")
    if _LIKE_JSON.match(first) or isinstance(begins, list):
        at, why = _broken(text, lines)
        raise UserError(f"{name}: line {at}: looks like JSON and is none ({why}); {GIVE}")
    if len(lines) > 1 and all(isinstance(_loaded(line, name), str) for _, line in lines):
        raise UserError(f"{name}: line {number}: is a text of JSON, in quotes; {GIVE}")
    return None


def _broken(text: str, lines: list[tuple[int, str]]) -> tuple[int, str]:
    """The line where what looks like JSON goes wrong, and how: of JSONL in the first line itself,
    which would else be taken for one that goes on in the next."""
    number, first = lines[0]
    alone = all(line.lstrip().startswith("{") for _, line in lines[:2])
    try:
        json.loads(first if alone else text)
    except json.JSONDecodeError as error:
        return number if alone else error.lineno, f"{error.msg} at column {error.colno}"
    except RecursionError:
        pass
    return number, "nested too deeply"


def _loaded(text: str, place: str) -> Any:
    """What `text` is as JSON; None where it is none. Raises `UserError` where an object has two
    fields of one name."""
    try:
        return loads(text)
    except TwiceError as error:
        raise UserError(f"{place}: {error}") from None
    except (ValueError, RecursionError):
        return None


def _of_objects(name: str, objects: list[tuple[str, Any]], known: Sequence[str]) -> list[Prompt]:
    if not objects:
        raise UserError(f"{name}: holds no prompts; give {WANTED}")
    prompts, problems = [], []
    unread: dict[str, int] = {}
    for at, row in objects:
        place = f"{name}: {at}"
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(row, dict):
            in_list = f" with `prompt`, found {shorten(row)}"
            how = in_list if at.startswith("row") else ", as the first line is one"
            problems.append(f"{place}: expected a JSON object{how}")
        elif not isinstance(text, str):
            found = "none" if text is None else shorten(text)
            problems.append(f"{place}: expected a text as `prompt`, found {found}")
        elif (problem := unencodable(text)) is not None:
            problems.append(f"{place}: `prompt` {problem}")
        else:
            prompts.append(Prompt(text, place))
            for field in row.keys() - {"prompt", *known}:
                unread[field] = unread.get(field, 0) + 1
    raise_if(_some(problems, name))
    for field, count in sorted(unread.items()):
        note(f"{name}: the field {field!r} of {count:,} rows is not read")
    return prompts


def _some(problems: list[str], name: str, shown: int = 20) -> list[str]:
    more = len(problems) - shown
    return problems if more <= 0 else [*problems[:shown], f"{name}: and {more:,} more like these"]


def prompt_ids(prompts: list[Prompt], options: GenerateOptions, opened: Opened) -> list[list[int]]:
    """What the model reads for each prompt: as the template lays it out, or, with --raw, as it
    stands."""
    tokenizer = opened.tokenizer
    if not options.raw:
        template = opened.template(options.template)
        return _laid_out(prompts, options.system, template, tokenizer)
    found = [[*tokenizer.text_begins, *tokenizer.encode(prompt.text)] for prompt in prompts]
    raise_if(
        [
            f"{prompt.place or '--prompt'}: this tokenizer adds no BOS: give some text with --raw"
            for prompt, ids in zip(prompts, found, strict=True)
            if not ids
        ]
    )
    return found


def _laid_out(
    prompts: list[Prompt], system: str | None, template: Template, tokenizer: Tokenizer
) -> list[list[int]]:
    def ids(text: str, system: str | None) -> list[int]:
        turns: list[Message] = [{"role": "user", "content": text}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        return template.prompt(turns, tokenizer)

    if system is not None and ids("a", system) == ids("a", f"{system} b"):
        raise UserError("--system: the template leaves it out; put it into the prompt")
    return [ids(prompt.text, system) for prompt in prompts]
