"""Strict JSON, and `--override key=value` on top of it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from llama.errors import UserError, raise_if
from llama.files.inputs import TEXT_LIMIT, file_problem, nearest, read_text
from llama.settings.deepspeed_json import keys
from llama.settings.deepspeed_json.off import without_what_is_off
from llama.settings.options.answers import in_deepspeed_json

SHIPPED = Path(__file__).parents[2] / "ds_configs"
"""The files that come with the program; in a checkout a link to `ds_configs/`."""


def located(path: Path) -> Path:
    """`path` where there is such a file; else, of a bare name, the file of that name (`lora_bf16`,
    `lora_bf16.json`) that comes with the program. Raises `UserError`, naming those that do."""
    if os.path.isfile(path):  # false too of a name that is no name for a file
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.json"))}
    name, is_bare = path.name.removesuffix(".json"), path.name == str(path)
    if is_bare and name in shipped:
        return shipped[name]
    problem = file_problem(path, fits=_is_one)
    if os.path.exists(path) or problem is None:
        return path  # whoever reads it says what is wrong with it
    if name in shipped:
        raise UserError(f"{path}: {problem}; the one that comes with llama-lora is {name}")
    hint = "" if "did you mean" in problem else nearest(name, shipped)
    raise UserError(f"{path}: {problem}{hint}; with llama-lora come {', '.join(shipped)}")


def _is_one(path: Path) -> bool:
    """Whether the file at `path` looks like a DeepSpeed JSON, and not like rows of data."""
    if path.suffix != ".json" or file_problem(path) or path.stat().st_size > TEXT_LIMIT:
        return False
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and not document.keys().isdisjoint(keys.KEYS)


def of_method(method: str) -> Path:
    """The file that comes with the program for `--method` `method` on one device that holds all."""
    return SHIPPED / f"{method}.json"


def load(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The JSON object in the file at `path`, with `overrides` applied (`optimizer.params.lr=1e-4`:
    the value is JSON, else text), less what is switched off in it. Raises `UserError`; what the
    keys mean is `check`'s matter."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: is empty; a JSON object is expected")
    try:
        config = _strict_json(text)
    except json.JSONDecodeError as error:
        where = f"{path}: line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: {_why(text, error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, found {json.dumps(config)[:60]}")
    problems: list[str] = []
    applied: list[str] = []
    for override in overrides:
        if name := _apply(config, override, problems):
            applied.append(name)
    twice = [name for name in dict.fromkeys(applied) if applied.count(name) > 1]
    raise_if(problems + [f"--override {name}: given twice; keep one" for name in twice])
    try:
        return without_what_is_off(config)
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


def _strict_json(text: str) -> Any:
    """Raises `ValueError` on what Python's reader lets through: duplicate keys, NaN, infinities."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise ValueError(f"{key}: given twice in one object")
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON; a finite number is expected")

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError(f"{digits} is too large a number")
        return float(digits)

    return json.loads(
        text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number, parse_int=_int
    )


def _int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"{digits[:18]}... is too large a number")
    return int(digits)


def _why(text: str, error: json.JSONDecodeError) -> str:
    """The decoder's complaint, in the user's terms for the two mistakes that JSON invites."""
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if after.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if after.startswith(("}", "]")) and before.endswith(","):
        return "trailing comma"
    return error.msg[:1].lower() + error.msg[1:]


def _apply(config: dict[str, Any], override: str, problems: list[str]) -> str | None:
    """Gives the key that was set, where it is one that there is."""
    name, equals, text = override.partition("=")
    parts = name.split(".")
    if not equals or not text or not all(parts):
        example = "expected KEY=VALUE, as optimizer.params.lr=1e-4"
        problems.append(f"--override {override}: {example}")
        return None
    if name not in (known := keys.names()):
        hint = nearest(name, known) or in_deepspeed_json(parts[-1])
        problems.append(f"--override {override}: unknown key {name}{hint}")
        return None
    section = config
    for part in parts[:-1]:
        if section.get(part) is None:  # null is as if it were not there
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return name  # `check` says what is wrong with this section of the file
    try:
        section[parts[-1]] = _strict_json(text)
    except (ValueError, RecursionError):
        section[parts[-1]] = text
    return name
