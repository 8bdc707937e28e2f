"""Columns that go by other names: renamed before the form is chosen, and nothing goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llama.data.columns import Columns, Renamer
from llama.data.prepare import Reading, prepare
from llama.data.rows import Row, read_rows
from llama.errors import UserError
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_tokenizer

SAME = [
    ({"q": "one", "a": "two"}, (("prompt", "q"), ("completion", "a"))),
    ({"q": "one", "a": "two"}, (("instruction", "q"), ("output", "a"))),
    ({"output": "one", "prompt": "two"}, (("prompt", "output"), ("completion", "prompt"))),
    (
        {"dialog": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        (("messages", "dialog"),),
    ),
    (
        {"dialog": [{"who": "human", "says": "one"}, {"who": "gpt", "says": "two"}]},
        (
            ("conversations", "dialog"),
            ("conversations.from", "who"),
            ("conversations.value", "says"),
        ),
    ),
]  # fmt: skip
SAID = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})


def rows(folder: Path, columns: Columns, *records: Any, name: str = "rows.json") -> list[Row]:
    (folder / name).write_text(json.dumps(records))
    return read_rows([folder / name], columns).rows


@pytest.mark.parametrize(("record", "columns"), SAME)
def test_a_conversation_under_other_names(
    tmp_path: Path, record: dict[str, Any], columns: Columns
) -> None:
    (row,) = rows(tmp_path, columns, record)
    assert (row.messages, row.unread) == (SAID, ())


def test_what_is_replaced_is_told(tmp_path: Path) -> None:
    record = {"prompt": "one", "completion": "old", "answer": "two", "id": 3}
    (row,) = rows(tmp_path, (("completion", "answer"),), record)
    assert row.messages == SAID
    assert row.unread == ("id", "completion (replaced by --columns)")


def test_a_row_without_the_column_is_read_by_its_own(tmp_path: Path) -> None:
    first, second = {"prompt": "one", "answer": "two"}, {"prompt": "one", "completion": "two"}
    columns = (("completion", "answer"),)
    assert [row.messages for row in rows(tmp_path, columns, first, second)] == [SAID, SAID]


KINDS = {
    "rows.json": lambda rows, path: path.write_text(json.dumps(rows)),
    "rows.jsonl": lambda rows, path: path.write_text("\n".join(map(json.dumps, rows))),
    "rows.parquet": lambda rows, path: pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), path
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_null_is_no_column_in_any_kind_of_file(tmp_path: Path, name: str) -> None:
    """And what is read in its stead is told."""
    records = [
        {"prompt": "one", "completion": "old", "better": "two"},
        {"prompt": "one", "completion": "two", "better": None},
    ]
    KINDS[name](records, tmp_path / name)
    found = read_rows([tmp_path / name], (("completion", "better"),)).rows
    assert [row.messages for row in found] == [SAID, SAID]
    assert [row.own for row in found] == [(), (("completion", "better"),)]
    tokenizer = byte_tokenizer(tmp_path)
    reading = Reading(64, columns=(("completion", "better"),))
    made = prepare([tmp_path / name], load_template("chatml", tokenizer), tokenizer, reading)
    said = 'row has no "better" and is read by its own "completion" (row 2)'
    assert f"1 {said}" in made.report.text()
    KINDS[name](
        [{"prompt": "one", "better": "x"}, {"prompt": "one", "better": None}], tmp_path / name
    )
    with pytest.raises(UserError, match="2: field 'completion' is missing"):
        read_rows([tmp_path / name], (("completion", "better"),))


def test_a_field_of_a_turn_that_some_turns_lack(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one"}, {"who": "assistant", "content": "two"}]
    (row,) = rows(tmp_path, (("messages.role", "who"),), {"messages": turns})
    assert row.messages == SAID
    assert row.own == (("role of a turn", "who of a turn"),)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            ("completion", "anwser"),
            "--columns completion=anwser: no row has 'anwser' (they have prompt, answer); did you "
            "mean answer?",
        ),
        (
            ("messages.role", "speaker"),
            "--columns messages.role=speaker: no row has 'speaker' (they have prompt, answer)",
        ),
    ],
)
def test_a_column_that_no_row_has(tmp_path: Path, column: tuple[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        rows(tmp_path, (column,), {"prompt": "a", "answer": "b"})
    assert caught.value.problems == [f"{tmp_path / 'rows.json'}: {said}"]


def test_a_column_of_one_file_of_two(tmp_path: Path) -> None:
    """A folder's shards are one data set."""
    for name, record in (("a", {"q": "one", "answer": "two"}), ("b", {"q": "one", "a": "two"})):
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    columns = (("question", "q"), ("answer", "a"))
    found = read_rows([tmp_path / "a.json", tmp_path / "b.json"], columns).rows
    assert [row.messages for row in found] == [SAID, SAID]


def test_two_that_read_a_part_each() -> None:
    columns = (("prompt", "q"), ("completion", "a"))
    first, second = Renamer(columns), Renamer(columns)
    first.renamed({"q": 1, "x": 2})
    second.renamed({"a": 1, "y": 2})
    assert len(first.problems("rows")) == 1
    first.merge(second)
    assert first.problems("rows") == [] and list(first.others) == ["x", "y"]
