"""A data file's records one after the other, in memory that no size of the file fills.

`llama.data.records` reads a file whole and names all that is wrong with it. This is the fast way
for files with nothing wrong: at the first thing that is unlike what a sound file holds it raises
`UnsoundError`, and the file is read the other way for the words. Tests hold one against the other.

What a `place` counts, so that a record can be found again without reading those before it:

    JSONL, JSON, CSV        bytes from the start of the file to the record
    Parquet, Arrow          records before it
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from json.decoder import WHITESPACE  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from llama.data.records import (
    LONGEST_CELL,
    WANTED,
    kind_by,
    loads,
    mark_of,
    named_twice,
    without_nulls,
)
from llama.errors import UserError
from llama.files.kinds import CSV, ERROR, HEAD, JSON, PARQUET, TEXT
from llama.files.outside import require_file

Item = tuple[int, int, Any]
"""A record: its number, its place, and itself: bytes or text of JSON, or what a table has."""
READ = 1 << 20
"""Bytes that are read at a time."""
ROWS = 256
"""Rows of a table that are taken at a time."""


class UnsoundError(Exception):
    """The file is not what a sound one is; `llama.data.records` says how."""


def items(path: Path) -> Iterator[Item]:
    """The records of `path` from its start. Raises UnsoundError and UserError, perhaps late."""
    try:
        kind = _kind_of(path)
        if kind in _BATCHES:
            yield from _of_table(path, kind)
            return
        with path.open("rb") as file:
            yield from _OF_TEXT[kind](file, None)
    except (UserError, UnsoundError, MemoryError):
        raise
    except Exception as error:  # The parsers are other people's, and raise what they like.
        raise UnsoundError(f"{path}: {type(error).__name__}: {error}") from error


def records_at(path: Path, places: Sequence[int]) -> Iterator[Any]:
    """The records at `places`, which ascend, in a file that was sound."""
    kind = _kind_of(path)
    if kind in _BATCHES:
        yield from (record for _, _, record in _of_table(path, kind, places))
        return
    with path.open("rb") as file:
        for place in places:
            yield parsed(next(_OF_TEXT[kind](file, place))[2])


def parsed(item: Any) -> Any:
    """The record that an item holds. Raises ValueError and RecursionError."""
    return loads(item) if isinstance(item, str | bytes) else item


def unit_of(path: Path) -> str:
    """What a record's number counts."""
    return "line" if _kind_of(path) == _LINES else "row"


def _kind_of(path: Path) -> str:
    """The kind of a file of data, as the tables below have it."""
    require_file(path, WANTED, (JSON, CSV, ERROR, TEXT, *_BATCHES))
    with path.open("rb") as file:
        kind = kind_by(path, file.read(HEAD))
        if kind in _BATCHES or kind == CSV:
            return kind
        file.seek(_begin(file))
        while block := file.read(READ):
            if block := block.lstrip():
                return _LIST if block[:1] == b"[" else _LINES
    raise UnsoundError(f"{path}: blank")


def _begin(file: BinaryIO) -> int:
    """Where the text begins: after a byte order mark."""
    file.seek(0)
    return len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0


def _lines(file: BinaryIO, start: int | None) -> Iterator[Item]:
    """JSONL; blank lines count and hold nothing."""
    place = _begin(file) if start is None else start
    file.seek(place)
    for number, line in enumerate(file, start=1):
        if line.strip():
            if b"\0" in line:
                raise UnsoundError("NUL")
            line.decode("utf-8")
            yield number, place, line
        place += len(line)


def _list(file: BinaryIO, start: int | None) -> Iterator[Item]:
    """The elements of a JSON list."""
    text = _Text(file, _begin(file) if start is None else start)
    if start is None:
        text.peek()
        text.pass_over(1)
    number, after = 1, ","
    while after == ",":
        text.peek()
        yield number, text.place, text.element()
        after = text.peek()
        text.pass_over(1)
        number += 1
    if after != "]" or text.peek():
        raise UnsoundError("no list")


def _csv(file: BinaryIO, start: int | None) -> Iterator[Item]:
    """Rows of a CSV file, whose first line names the columns."""
    begin = _begin(file)
    file.seek(begin)
    heading = file.readline().decode("utf-8")
    mark = mark_of(Path(file.name), heading)
    csv.field_size_limit(LONGEST_CELL)
    lines = _Lines(file.name, begin)
    reader = csv.reader(lines, delimiter=mark, strict=True)
    names = [name.strip() for name in next(reader)]
    if not names or len(set(names)) < len(names):
        raise UnsoundError("no name, or one twice")
    if start is not None:
        lines = _Lines(file.name, start)
        reader = csv.reader(lines, delimiter=mark, strict=True)
    number = 0
    while True:
        place = lines.place
        values = next(reader, None)
        if values is None:
            return
        if values:
            number += 1
            yield number, place, dict(zip(names, values, strict=True))


class _Lines:
    """The lines of a CSV file from a place on, with the marks at their ends, as Python's reader of
    CSV wants them."""

    def __init__(self, name: str, place: int) -> None:
        file = open(name, "rb")
        file.seek(place)
        self._text = io.TextIOWrapper(file, "utf-8", newline="")
        self.place = place
        """Bytes before the line that comes next."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        if "\0" in line:
            raise UnsoundError("NUL")
        self.place += len(line.encode("utf-8"))
        return line


class _Text:
    """A file of JSON as text, of which no more than an element and a block is held."""

    def __init__(self, file: BinaryIO, place: int) -> None:
        file.seek(place)
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._held, self._at = "", 0
        self.place = place
        """Bytes before what comes next."""

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            end = WHITESPACE.match(self._held, self._at).end()
            self.pass_over(end - self._at)
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def element(self) -> str:
        """The next value, as it is written. One that ends where the text so far does may go on."""
        while True:
            end = None
            try:
                _, end = self._json.raw_decode(self._held, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if end < len(self._held) or not self._more():
                break
        written = self._held[self._at : end]
        self.pass_over(len(written))
        return written

    def pass_over(self, count: int) -> None:
        self.place += len(self._held[self._at : self._at + count].encode("utf-8"))
        self._at += count

    def _more(self) -> bool:
        """Read on, as much again as is held: an element of any size is tried a few times only."""
        held = self._held[self._at :]
        block = self._file.read(max(READ, len(held)))
        if b"\0" in block:
            raise UnsoundError("NUL")
        self._held, self._at = held + self._decoder.decode(block, final=not block), 0
        return bool(block)


_LINES, _LIST = "JSON lines", "a JSON list"
_OF_TEXT: dict[str, Callable[[BinaryIO, int | None], Iterator[Item]]] = {
    _LINES: _lines,
    _LIST: _list,
    CSV: _csv,
}
"""What reads each kind of text, from its start or from a record's place on."""


def _ipc(open_it: Callable[[Any], Any]) -> Callable[[Path], Iterator[pyarrow.RecordBatch]]:
    def batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.memory_map(str(path)) as mapped:
            reader = open_it(mapped)
            if isinstance(reader, pyarrow.ipc.RecordBatchFileReader):
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                yield from reader

    return batches


_BATCHES: dict[str, Callable[[Path], Iterator[pyarrow.RecordBatch]]] = {
    PARQUET: lambda path: pyarrow.parquet.ParquetFile(path).iter_batches(ROWS),
    "an Arrow file": _ipc(pyarrow.ipc.open_file),
    "an Arrow stream": _ipc(pyarrow.ipc.open_stream),
}
"""What reads each kind of file that holds columns."""


def _of_table(path: Path, kind: str, places: Sequence[int] | None = None) -> Iterator[Item]:
    """The rows of a table, or those at `places`, which ascend."""
    before = 0
    wanted = None if places is None else list(places)
    for batch in _BATCHES[kind](path):
        ends = before + batch.num_rows
        if wanted is None:
            if named_twice(batch.schema.names) is not None:
                raise UnsoundError("a column twice")
            batch.validate(full=True)  # Among the rest, that texts are UTF-8.
            for start in range(0, batch.num_rows, ROWS):
                for index, row in enumerate(batch.slice(start, ROWS).to_pylist(), before + start):
                    yield index + 1, index, without_nulls(row)
        while wanted and wanted[0] < ends:
            at = wanted.pop(0)
            (row,) = batch.slice(at - before, 1).to_pylist()
            yield at + 1, at, without_nulls(row)
        if wanted == []:
            return
        before = ends
