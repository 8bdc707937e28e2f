"""A data file's records: JSON, JSONL or Parquet, told apart by what the file holds."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llama.errors import UserError
from llama.files.kinds import ERROR, JSON, PARQUET, TEXT
from llama.files.outside import read_bytes, refused

WANTED = "a JSON list of objects, JSONL or Parquet"
SHOWN = 20
"""Problems of one file that are told one by one."""


class Problems:
    """Collects the problems of one file, to be raised together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._more = 0

    def add(self, place: str, problem: str) -> None:
        """`place` is a row or line, or empty for the file as a whole."""
        if len(self._lines) < SHOWN:
            where = f"{self._path}: {place}: " if place else f"{self._path}: "
            self._lines.append(where + problem)
        else:
            self._more += 1

    def raise_any(self) -> None:
        """Raise all of them as one UserError, if there are any."""
        if self._more:
            self._lines.append(f"{self._path}: and {self._more:,} more problems like these")
        if self._lines:
            raise UserError(self._lines)


def read_records(path: Path) -> tuple[list[tuple[int, Any]], str]:
    """The records of `path`, each with its number from 1, and what the numbers count: `row`, or
    `line` of a JSONL file. A record may still be anything that JSON can hold. Raises UserError."""
    data = read_bytes(path, WANTED, kinds=(JSON, PARQUET, ERROR, TEXT))
    if data.startswith(b"PAR1"):
        return list(enumerate(_parquet(path, data), start=1)), "row"
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.lstrip().startswith(b"["):
        return list(enumerate(_json(path, data), start=1)), "row"
    if not data.strip():
        raise UserError(f"{path}: holds no rows; give {WANTED}")
    return _json_lines(path, data), "line"


def _parquet(path: Path, data: bytes) -> list[dict[str, Any]]:
    with refused(path, "is not a readable Parquet file"):
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read()
        table.validate(full=True)  # Among the rest, that texts are UTF-8.
        return table.to_pylist()


def _json(path: Path, data: bytes) -> list[Any]:
    problems = Problems(path)
    _check_bytes(data, problems)
    problems.raise_any()
    with refused(path, "is not valid JSON"):
        try:
            return json.loads(data)
        except RecursionError:
            raise UserError(f"{path}: is nested too deeply") from None


def _json_lines(path: Path, data: bytes) -> list[tuple[int, Any]]:
    problems = Problems(path)
    told = _check_bytes(data, problems)
    records: list[tuple[int, Any]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip() or number in told:
            continue
        try:
            records.append((number, json.loads(line)))
        except RecursionError:
            problems.add(f"line {number}", "is nested too deeply")
        except ValueError as error:
            if number == 1 and _is_one_object(data):
                problems.add("", f"holds one JSON object over several lines; give {WANTED}")
                break
            problems.add(f"line {number}", f"malformed JSON ({error})")
    problems.raise_any()
    return records


def _check_bytes(data: bytes, problems: Problems) -> set[int]:
    """Note the lines that hold a NUL or bad UTF-8, and give their numbers; a sound file costs one
    pass."""
    try:
        data.decode("utf-8")
        if b"\0" not in data:
            return set()
    except UnicodeDecodeError:
        pass
    told: set[int] = set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(f"line {number}", f"is not UTF-8 (byte {error.start + 1} of the line)")
            told.add(number)
        if b"\0" in line:
            problems.add(f"line {number}", "holds a NUL character")
            told.add(number)
    return told


def _is_one_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False
