"""A data file's records: JSON, JSONL, CSV, Parquet or Arrow, told apart by what the file holds."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from json.decoder import WHITESPACE  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from llama.errors import UserError, raise_if
from llama.files.kinds import CSV, ERROR, HEAD, JSON, PARQUET, TEXT, csv_mark, kind_of
from llama.files.outside import read_bytes, refused

WANTED = "a JSON list of objects, JSONL, CSV, Parquet or Arrow"
TABLES: dict[str, Callable[[pyarrow.BufferReader], pyarrow.Table]] = {
    PARQUET: lambda data: pyarrow.parquet.ParquetFile(data).read(),
    "an Arrow file": lambda data: pyarrow.ipc.open_file(data).read_all(),
    "an Arrow stream": lambda data: pyarrow.ipc.open_stream(data).read_all(),
}
"""How each kind of file that holds columns is read."""
CSV_NAMES = {".csv": ",", ".tsv": "\t"}
"""How the names of CSV files end, and what parts the values of one by that name."""
_JSON_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*[\[{]\s*[\[{\"\]}]")
"""A list or an object with something of JSON's in it: no `[id],text`."""
LONGEST_CELL = 1 << 30
"""Characters of one value of a CSV file; Python's own limit is 131,072."""
SHOWN = 20
"""Problems of one file that are told one by one."""


class TwiceError(ValueError):
    """An object of JSON that names a field twice: a reader would keep the last."""


class Problems:
    """Collects the problems of one file, to be raised together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, int] = {}
        """Each line, and how many more rows it stands for."""
        self._first: dict[str, str] = {}
        self._more = 0

    def add(self, place: str, problem: str) -> None:
        """`place` is a row or line, or empty for the file as a whole."""
        if len(self._lines) < SHOWN:
            where = f"{self._path}: {place}: " if place else f"{self._path}: "
            self._lines.setdefault(where + problem, 0)
        else:
            self._more += 1

    def add_kind(self, place: str, problem: str) -> None:
        """A problem that other rows are likely to share: told of the first, the rest counted."""
        if problem in self._first:
            self._lines[self._first[problem]] += 1
        elif len(self._lines) < SHOWN:
            self._first[problem] = f"{self._path}: {place}: {problem}"
            self._lines[self._first[problem]] = 0
        else:
            self._more += 1

    @property
    def any(self) -> bool:
        return bool(self._lines)

    def raise_any(self) -> None:
        """Raise all of them as one UserError, if there are any."""
        lines = [f"{line}; so {_are(n)} more" if n else line for line, n in self._lines.items()]
        if self._more:
            lines.append(f"{self._path}: and {self._more:,} more problems like these")
        raise_if(lines)


def _are(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {count:,}"


def read_records(path: Path) -> tuple[list[tuple[int, Any]], str]:
    """The records of `path`, each with its number from 1, and what the numbers count: `row`, or
    `line` of a JSONL file. A record may still be anything that JSON can hold. Raises UserError."""
    data = read_bytes(path, WANTED, kinds=(JSON, CSV, ERROR, TEXT, *TABLES))
    kind = kind_by(path, data[:HEAD])
    if kind in TABLES:
        return list(enumerate(_table(path, data, kind), start=1)), "row"
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise no_rows(path)
    if kind == CSV:
        return list(enumerate(_csv(path, data), start=1)), "row"
    if data.lstrip().startswith(b"[") and not _is_lines_of_lists(data):
        return list(enumerate(_json(path, data), start=1)), "row"
    return _json_lines(path, data), "line"


def kind_by(path: Path, head: bytes) -> str | None:
    """The kind of a file that begins with `head`. Its content decides, and its name where that
    tells nothing: a CSV file of one column looks like any text, and the name of a column may begin
    as JSON does."""
    kind = kind_of(head)
    unsure = kind in (None, TEXT) or (kind == JSON and not _JSON_BEGINS.match(head))
    return CSV if unsure and path.suffix.lower() in CSV_NAMES else kind


def no_rows(path: Path) -> UserError:
    """For a file in which there are none."""
    is_csv = path.suffix.lower() in CSV_NAMES
    wanted = "put them below a line with the names of the columns" if is_csv else f"give {WANTED}"
    return UserError(f"{path}: holds no rows; {wanted}")


def mark_of(path: Path, text: str) -> str:
    """What parts the values of a CSV file that begins with `text`."""
    return csv_mark(text, CSV_NAMES.get(path.suffix.lower(), ","))


def named_twice(names: Sequence[str]) -> str | None:
    """The first name that comes a second time."""
    seen: set[str] = set()
    again = (name for name in names if name in seen or seen.add(name))
    return next(again, None)


def loads(text: str | bytes) -> Any:
    """What JSON holds. Raises ValueError, of which TwiceError is one, and RecursionError."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = str(named_twice([name for name, _ in pairs]))
        raise TwiceError(f"names the field {name[:40]!r} twice; keep one")
    return found


def _table(path: Path, data: bytes, kind: str) -> list[dict[str, Any]]:
    problem = f"is not a readable {kind.removeprefix('a ').removeprefix('an ')}"
    with refused(path, problem):
        table = TABLES[kind](pyarrow.BufferReader(data))
    if (name := named_twice(table.column_names)) is not None:
        raise UserError(f"{path}: names the column {name[:40]!r} twice; keep one")
    with refused(path, problem):
        table.validate(full=True)  # Among the rest, that texts are UTF-8.
        return [without_nulls(row) for row in table.to_pylist()]


def without_nulls(value: Any) -> Any:
    """A table's rows all have the fields of any: null stands where a row has none of its own."""
    if isinstance(value, dict):
        return {k: without_nulls(item) for k, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _csv(path: Path, data: bytes) -> list[dict[str, str]]:
    """Rows of a CSV file whose first line names the columns, parted by comma, semicolon or tab."""
    problems = Problems(path)
    _check_bytes(data, problems)
    problems.raise_any()
    text = data.decode("utf-8")
    names, *lines = _csv_lines(path, text) or [[]]
    if not names:
        raise UserError(f"{path}: line 1: is blank; begin with the names of the columns")
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: its first line names a column twice: {', '.join(names)}")
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, start=1):
        if len(line) != len(names):
            found = f"has {len(line)} values where the first line names {len(names)} columns"
            mark = mark_of(path, text)
            problems.add(f"row {number}", f"{found}; put a value with {mark!r} in quotes")
    problems.raise_any()
    return [dict(zip(names, line, strict=True)) for line in lines]


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    """The values of every row of a CSV file, that of the names included."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark_of(path, text), strict=True)
    rows: list[list[str]] = []
    line = 1
    try:
        for row in reader:
            rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        last = reader.line_num
        where = f"line {line}" if last <= line else f"lines {line} to {last}, one row"
        raise UserError(
            f"{path}: {where}: is not valid CSV ({error}); close each quote, and write one within "
            "quotes twice"
        ) from None
    return rows


def _is_lines_of_lists(data: bytes) -> bool:
    """Whether it is JSONL, of lists: its first line is a list of its own, and not the last."""
    line, _, rest = data.lstrip().partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(line), list)
    except (ValueError, RecursionError):
        return False


def _json(path: Path, data: bytes) -> list[Any]:
    problems = Problems(path)
    _check_bytes(data, problems)
    problems.raise_any()
    with refused(path, "is not valid JSON"):
        try:
            return loads(data)
        except RecursionError:
            raise UserError(f"{path}: is nested too deeply") from None
        except TwiceError:
            _add_twice(json.JSONDecoder(), data.decode("utf-8"), problems)
    problems.raise_any()
    raise AssertionError("a field was named twice in one of the rows")


def _add_twice(plain: json.JSONDecoder, text: str, problems: Problems) -> None:
    """Note each element of a list, sound but for that, that names a field twice."""
    once = json.JSONDecoder(object_pairs_hook=_once)
    at, number = text.index("["), 0
    while text[at] != "]":
        at, number = WHITESPACE.match(text, at + 1).end(), number + 1
        try:
            once.raw_decode(text, at)
        except TwiceError as error:
            problems.add(f"row {number}", str(error))
        at = WHITESPACE.match(text, plain.raw_decode(text, at)[1]).end()


def _json_lines(path: Path, data: bytes) -> list[tuple[int, Any]]:
    problems = Problems(path)
    told = _check_bytes(data, problems)
    records: list[tuple[int, Any]] = []
    malformed: list[tuple[int, ValueError]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip() or number in told:
            continue
        try:
            records.append((number, loads(line)))
        except RecursionError:
            problems.add(f"line {number}", "is nested too deeply")
        except TwiceError as error:
            problems.add(f"line {number}", str(error))
        except ValueError as error:
            if b"\n" not in data and b"\r" in data.strip():
                problems.add(
                    "", "its lines end in CR alone; save it with line feeds (LF) at their ends"
                )
                break
            if number == 1 and _is_one_object(data):
                problems.add("", f"holds one JSON object over several lines; give {WANTED}")
                break
            malformed.append((number, error))
    if len(malformed) > 1 and not records:  # another kind of file, as notes or source text
        number, error = malformed[0]
        problems.add("", f"no line of it is JSON (line {number}: {error}); give {WANTED}")
    else:
        for number, error in malformed:
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
