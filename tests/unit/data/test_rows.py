"""Rows: formats told apart by content and fields, and every problem named with file, row, field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from llama.data.prepare import Reading, prepare
from llama.data.records import read_records
from llama.data.rows import BUNDLED, Row, bundled, read_rows
from llama.data.stream import items
from llama.errors import UserError
from llama.tokenizer.templates import load_template
from tests.support.skips import needs_another_user_than_root, outside
from tests.support.tokenizer_files import byte_tokenizer

ALPACA = {"instruction": "Add", "input": "1 2", "output": "3"}
ALPACA_MESSAGES = (
    {"role": "user", "content": "Add", "input": "1 2"},
    {"role": "assistant", "content": "3"},
)
TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def write(tmp_path: Path, data: Any, name: str = "data") -> Path:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def read(*paths: Path) -> list[Row]:
    return read_rows(paths).rows


def problems(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(path)
    assert all(line.startswith(str(path)) and "\n" not in line for line in caught.value.problems)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (ALPACA, Row(1, ALPACA_MESSAGES)),
        (
            {"instruction": "Add", "input": "", "output": "3", "text": "published so", "id": 7},
            Row(1, ({"role": "user", "content": "Add"}, ALPACA_MESSAGES[1]), unread=("text", "id")),
        ),
        (
            {"instruction": "Add", "input": None, "output": ""},
            Row(1, ({"role": "user", "content": "Add"}, {"role": "assistant", "content": ""})),
        ),
        ({"prompt": "u", "completion": "a"}, Row(1, tuple(TURNS))),
        ({"messages": TURNS, "text": "more"}, Row(1, tuple(TURNS), unread=("text",))),
        ({"text": "once"}, Row(1, text="once")),
    ],
)
def test_formats(tmp_path: Path, record: dict[str, Any], row: Row) -> None:
    assert read(write(tmp_path, [record])) == [row]
    assert read(write(tmp_path, json.dumps(record).encode())) == [row]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "parquet")
    assert read(tmp_path / "parquet") == [row]


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ALPACA] * 3), tmp_path / "a.json")
    assert [row.number for row in read(tmp_path / "a.json")] == [1, 2, 3]
    assert len(read(write(tmp_path, [ALPACA] * 2, "a.parquet"))) == 2


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    line = json.dumps({"text": "caf\u00e9 \u2028 x"}, ensure_ascii=False).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    rows = read(path)
    assert [(row.number, row.text) for row in rows] == [
        (1, "caf\u00e9 \u2028 x"),
        (3, "caf\u00e9 \u2028 x"),
    ]
    pretty = json.dumps([ALPACA], indent=2).replace("\n", "\r\n").encode()
    assert len(read(write(tmp_path, b"\xef\xbb\xbf\r\n" + pretty))) == 1


def test_bundled() -> None:
    counts = {name: len(read(bundled(name))) for name in BUNDLED}
    assert counts == {"instructions_200": 200, "heldout_40": 40}


def test_real_alpaca() -> None:
    assert len(read(outside("alpaca_2000.json"))) == 2000


@pytest.mark.parametrize("source", ["made here", "published"])
def test_tasks_of_another_shape_are_refused(source: str, tmp_path: Path) -> None:
    """Self-instruct's: an instruction, and inputs and outputs in a list of instances."""
    if source == "published":
        path = outside("seed_tasks.jsonl")
    else:
        task = {"id": "seed_0", "name": "x", "instruction": "Add", "is_classification": False}
        task |= {"instances": [{"input": "1 2", "output": "3"}]}
        path = write(tmp_path, b"\n".join([json.dumps(task).encode()] * 175), "tasks.jsonl")
    found = problems(path)
    assert found[0] == "line 1: field 'output' is missing"
    assert len(found) == 21
    assert found[-1] == "and 155 more problems like these"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"output": "x"}, "row 1: field 'instruction' is missing"),
        ({"instruction": None, "output": "x"}, "row 1: field 'instruction' is missing"),
        ({"instruction": "x", "output": 3}, "row 1: field 'output' is a number, not a string"),
        ({"instruction": "x", "output": "y", "input": []}, "row 1: field 'input' is a list"),
        ({"prompt": "x"}, "row 1: field 'completion' is missing"),
        ({"completion": True, "prompt": "x"}, "row 1: field 'completion' is a boolean"),
        ({"text": {"a": 1}}, "row 1: field 'text' is an object"),
        ({"text": ""}, "row 1: field 'text' is empty"),
        ({"text": "a\0b"}, "row 1: field 'text' holds a NUL"),
        ({"text": "\ud800"}, "row 1: field 'text' holds half of a surrogate"),
        (
            {"question": 1, "b": 2},
            "row 1: has none of the known fields (it has question, b); expected",
        ),
        ({"conversations": []}, "row 1: field 'conversations' has no assistant turn"),
        ({}, "row 1: has none of the known fields"),
        (["a"], "row 1: is a list, not an object"),
        (None, "row 1: is null, not an object"),
        ({"messages": "hi"}, "row 1: field 'messages' is a string, not a list"),
        ({"messages": []}, "row 1: field 'messages' has no assistant turn"),
        ({"messages": TURNS[:1]}, "row 1: field 'messages' has no assistant turn"),
        ({"messages": [1, *TURNS]}, "row 1: field 'messages', turn 1 is a number"),
        (
            {"messages": [*TURNS, {"role": "gpt", "content": "x"}]},
            "row 1: field 'messages', turn 3 has the role 'gpt'; known are system, developer, "
            "user, assistant, tool",
        ),
        (
            {"messages": [*TURNS, {"role": ["user"], "content": "x"}]},
            "row 1: field 'messages', turn 3 has the role ['user']",
        ),
        (
            {"messages": [{"role": "y" * 5000, "content": "x"}, *TURNS]},
            f"row 1: field 'messages', turn 1 has the role '{'y' * 59}; known are",
        ),
        (
            {"messages": [{"role": "user"}, *TURNS]},
            "row 1: field 'messages', turn 1, field 'content' is missing",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, record: Any, said: str) -> None:
    (line,) = problems(write(tmp_path, [record]))
    assert line.startswith(said)


def test_all_problems_at_once_and_a_count(tmp_path: Path) -> None:
    found = problems(write(tmp_path, [ALPACA, {"instruction": 1}, ALPACA, {"output": 2}]))
    assert [line.split(" is ")[0] for line in found] == [
        "row 2: field 'instruction'",
        "row 2: field 'output'",
        "row 4: field 'instruction'",
        "row 4: field 'output'",
    ]
    many = problems(write(tmp_path, [{"output": "x"}] * 100))
    assert len(many) == 21
    assert many[-1] == "and 80 more problems like these"


def test_mixed_formats_name_the_first_row_that_differs(tmp_path: Path) -> None:
    rows = [ALPACA, ALPACA, {"text": "x"}, {"prompt": "a", "completion": "b"}]
    assert problems(write(tmp_path, rows)) == [
        "row 3: is text, but the rows before it are alpaca; part them"
    ]


def test_malformed_lines_have_their_numbers(tmp_path: Path) -> None:
    good = json.dumps(ALPACA).encode()
    lines = [good, b"{oops", b"", b'{"instruction": "\xff"}', good, b'{"a": 1}}', b'{"a\0": 1}']
    found = problems(write(tmp_path, b"\n".join(lines)))
    told = {line.split(":")[0] for line in found}
    assert told == {"line 2", "line 4", "line 6", "line 7"}
    assert "line 4: is not UTF-8 (byte 18 of the line)" in found
    assert "line 7: holds a NUL character" in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "holds no rows"),
        (b"\xef\xbb\xbf", "holds no rows"),
        (b"[]", "holds no rows"),
        (b"[{}", "is not valid JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "row 1: is|is not valid JSON"),
        (b'{"data": [\n1]}', "holds one JSON object over several lines"),
        (b"instruction,output\na,b\n1,2,3\n", "row 2: has 3 values where the first line names 2"),
        (b'instruction,output\n"a,b\n', "is not valid CSV"),
        (b"instruction,output,output\na,b,c\n", "names a column twice"),
        (b"a,b\n1,2\n", "row 1: has none of the known fields (it has a, b)"),
        (b"ARROW1 and nothing", "is not a readable Arrow file"),
        (b"\x1f\x8b\x08" + bytes(9), "is gzip-compressed: unpack it first"),
        (b"PK\3\4" + bytes(40), "is a zip archive"),
        (b'["a", "b"]\n["c", "d"]\n["e", "f"]\n', "line 1: is a list, not an object"),
        (b"PAR1 and nothing", "is not a readable Parquet"),
        (b'[{"text": "\xc3\x28"}]', "line 1: is not UTF-8"),
        (b'[{"text":\n "\0"}]', "line 2: holds a NUL"),
        ('[{"text": "x"}]'.encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, said: str) -> None:
    found = problems(write(tmp_path, content))
    assert any(word in found[0] for word in said.split("|")), found
    assert len(found) == 1


CSV_OF_ANY_NAME = {
    "one column": ("text\nhello world\nagain\n", ["hello world", "again"]),
    "one column that holds commas": ('text\n"one, two"\n', ["one, two"]),
    "a name in brackets": ("[id],text\n0,a\n", ["a"]),
    "a first column without a name": (",text\n0,a\n1,b\n", ["a", "b"]),
    "a script of no spaces": ("text;\u8d28\u95ee\n\u6328\u62f6\u3000;x\n", ["\u6328\u62f6\u3000"]),
    "joiners and control characters": ("text\na\u200d\ufeffb\x1b\n", ["a\u200d\ufeffb\x1b"]),
    "many columns": ("text,a note (long)" + ",b c d" * 9 + "\n" + "x" + "," * 10, None),
}


@pytest.mark.parametrize("name", CSV_OF_ANY_NAME)
def test_csv_by_its_name(tmp_path: Path, name: str) -> None:
    """What its content does not tell the name does, for both readers."""
    text, texts = CSV_OF_ANY_NAME[name]
    path = write(tmp_path, text.encode(), "ROWS.CSV")
    if texts is None:
        assert "names a column twice" in problems(path)[0]
        return
    assert [row.text for row in read(path)] == texts
    assert [record for *_, record in items(path)] == [record for _, record in read_records(path)[0]]


def test_what_parts_values_by_the_name(tmp_path: Path) -> None:
    assert [row.text for row in read(write(tmp_path, b"text\na, b\n", "a.tsv"))] == ["a, b"]
    assert len(read(write(tmp_path, b"id,text\n1,a\n", "b.tsv"))) == 1
    assert problems(write(tmp_path, b"text\na, b\n", "a.csv")) == [
        "row 1: has 2 values where the first line names 1 columns; put a value with ',' in quotes"
    ]


@pytest.mark.parametrize(
    "text", ["Dear all,\nhello.\n", "\ntext\nb\n", '"a\nb\n', "text\n\xff", "text\n", "\n"]
)
def test_a_csv_file_is_never_told_to_be_one(tmp_path: Path, text: str) -> None:
    assert not any(
        "give" in line for line in problems(write(tmp_path, text.encode("latin-1"), "a.csv"))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'text,id\n"a\nb",1\n"x"y,2\n',
            "line 4: is not valid CSV (',' expected after '\"'); close",
        ),
        ('text,id\na,1\n"x y,2\nb,3\n', "lines 3 to 4, one row: is not valid CSV (unexpected end"),
        ('"text,id\n', "line 1: is not valid CSV (unexpected end of data)"),
    ],
)
def test_csv_that_cannot_be_read_is_told_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    (line,) = problems(write(tmp_path, text.encode(), "a.csv"))
    assert line.startswith(said)


TWICE = '{"text": "a", "text": "b"}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a"}\n' + TWICE, ["line 2: names the field 'text' twice; keep one"]),
        (f'[{{"text": "x"}}, {TWICE} ,\n{{"text": "y"}},{TWICE}]',
         [f"row {n}: names the field 'text' twice; keep one" for n in (2, 4)]),
        ('[{"messages": [{"role": "user", "role": "assistant"}]}]',
         ["row 1: names the field 'role' twice; keep one"]),
        ('{"text": "a"}\r{"text": "b"}\r',
         ["its lines end in CR alone; save it with line feeds (LF) at their ends"]),
        ('{"instruction": "a", "input": NaN, "output": "b"}',
         ["line 1: field 'input' is NaN (a missing value of pandas), not a string"]),
    ],
)  # fmt: skip
def test_json_that_others_would_read_in_their_own_way(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    path = write(tmp_path, text.encode())
    assert problems(path) == said
    with pytest.raises(UserError):
        prepare_it(path)


def prepare_it(path: Path) -> None:
    """By the fast way."""
    tokenizer = byte_tokenizer(path.parent)
    prepare([path], load_template("chatml", tokenizer), tokenizer, Reading(64))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_that_names_a_column_twice(tmp_path: Path, kind: str) -> None:
    arrays = [pyarrow.array([name]) for name in "abc"]
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "completion", "completion"])
    if kind == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "x")
    else:
        with pyarrow.ipc.new_file(str(tmp_path / "x"), table.schema) as writer:
            writer.write_table(table)
    assert problems(tmp_path / "x") == ["names the column 'completion' twice; keep one"]
    with pytest.raises(UserError):
        prepare_it(tmp_path / "x")


def test_parquet_problems(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "prompt": [None, 3]}), path)
    assert (
        problems(path)[0]
        == "row 2: is prompt/completion, but the rows before it are text; part them"
    )
    bad = pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), path)
    assert "UTF8" in problems(path)[0]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), path)
    assert "holds no rows" in problems(path)[0]
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet" in problems(tmp_path / "cut")[0]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    write(tmp_path, [ALPACA], "train.json")
    (line,) = problems(tmp_path / "trian.json")
    assert "does not exist" in line
    assert f"did you mean {tmp_path / 'train.json'}?" in line
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in problems(tmp_path / "pipe")[0]
    assert "cannot be read" in problems(tmp_path / "train.json" / "x")[0]


@needs_another_user_than_root()
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, [ALPACA])
    path.chmod(0)
    assert "cannot be read" in problems(path)[0]
