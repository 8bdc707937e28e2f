"""The fast way through a data file against the reader that holds it whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama.data import stream
from llama.data.records import read_records
from llama.data.store import making
from llama.data.stream import UnsoundError, items, parsed, records_at
from llama.errors import UserError

ROWS = [
    {
        "instruction": f"caf\u00e9 {i}",
        "output": "\u4e16 \n,\";'" * (i % 7),
        "more": {"a": [i, None]},
    }
    for i in range(300)
]


def json_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")


def json_list_on_a_line(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf " + json.dumps(ROWS).encode() + b" \n")


def json_lines(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS))


def csv_rows(path: Path, mark: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(["instruction", " output "])
        for row in ROWS:
            writer.writerow([row["instruction"], row["output"]])
            file.write("\r\n" if row is ROWS[3] else "")


def csv_of_semicolons(path: Path) -> None:
    csv_rows(path, ";")


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=70)


def arrow_file(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=37)


def arrow_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=37)


WRITERS = [
    *(json_list, json_list_on_a_line, json_lines, csv_rows, csv_of_semicolons),
    *(parquet, arrow_file, arrow_stream),
]


@pytest.mark.parametrize("block", [1, 61, 1 << 20])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_same_records_as_read_whole(
    write: Any, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "READ", block)
    write(tmp_path / "rows")
    expected, unit = read_records(tmp_path / "rows")
    found = list(items(tmp_path / "rows"))
    assert [(number, parsed(item)) for number, _, item in found] == expected
    assert stream.unit_of(tmp_path / "rows") == unit
    chosen = [0, 1, 36, 37, 69, 70, 200, 299]
    places = [found[i][1] for i in chosen]
    assert list(records_at(tmp_path / "rows", places)) == [expected[i][1] for i in chosen]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_parts_are_of_like_size_in_every_kind_of_file(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table's rows too, which once counted as many bytes as they have columns."""
    monkeypatch.setattr(making, "PART_BYTES", 500)
    write(tmp_path / "rows")
    found = list(making.parts([tmp_path / "rows"], []))
    rows = [len(part.items) for part in found]
    assert sum(rows) == len(ROWS) and max(rows) < 40


def outcome(path: Path) -> Any:
    try:
        return read_records(path)[0]
    except UserError:
        return None


def streamed(path: Path) -> Any:
    try:
        return [(number, parsed(item)) for number, _, item in items(path)]
    except (UserError, UnsoundError, ValueError, RecursionError):
        return None


PIECES = st.sampled_from(
    (
        *(b"[", b"]", b"{", b"}", b",", b"\n", b" ", b'"a": 1', b'{"a": "b"}', b"1", b"\xff"),
        *(b'["x"]', b"\r\n", b"a,b", b'"', b"\xef\xbb\xbf", b"\xc3\xa9", b"null", b"NaN", b"\0"),
    )
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=12))
def test_whatever_the_bytes_both_take_it_or_neither(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces"
    path.write_bytes(b"".join(pieces))
    whole, found = outcome(path), streamed(path)
    if found and whole:
        assert repr(found) == repr(whole)
    elif found:  # Refused whole where every record is no row: nothing more comes of it.
        assert not any(isinstance(record, dict) for _, record in found), (whole, found)
    else:
        assert not whole
