"""Forms of row: the same conversation in each gives the same tokens; no field goes unnoticed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from llama.data.examples import build_examples
from llama.data.prepare import Reading, prepare
from llama.data.rows import Row, read_rows
from llama.data.types import IGNORE, Example
from llama.errors import UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_description, byte_tokenizer, write_tokenizer_json

USER, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
SYSTEM = {"role": "system", "content": "Count."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": "number"}}}]
WITH_TOOLS = (
    "{% for t in tools or [] %}<s>{{ t | tojson }}</s>{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}(call)"
    "{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that writes tools and calls."""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path / "tokenizer")


def with_llama3s_tokens(folder: Path) -> Tokenizer:
    """The tiny tokenizer with the control tokens of Llama 3 besides its own."""
    description = byte_description()
    plain = description["added_tokens"][0]
    ids = itertools.count(1 + max(description["model"]["vocab"].values()))
    for name in ("begin_of_text", "start_header_id", "end_header_id", "eot_id"):
        token = {**plain, "id": next(ids), "content": f"<|{name}|>"}
        description["added_tokens"].append(token)
        description["model"]["vocab"][token["content"]] = token["id"]
    return load_tokenizer(write_tokenizer_json(folder, description))


def write(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(records))
    return path


def row(tmp_path: Path, record: Any) -> Row:
    (found,) = read_rows([write(tmp_path, record)]).rows
    return found


def examples(path: Path, tokenizer: Tokenizer, template: str = "chatml") -> list[Example]:
    data = read_rows([path])
    chosen = load_template(template, tokenizer)
    return build_examples(data.rows, chosen, tokenizer, 512, "drop").examples


def report(path: Path, tokenizer: Tokenizer, seq_len: int = 512) -> str:
    template = load_template("chatml", tokenizer)
    return prepare([path], template, tokenizer, Reading(seq_len, overlong="cut")).report.text()


def problem(tmp_path: Path, record: Any) -> str:
    path = write(tmp_path, record)
    with pytest.raises(UserError) as caught:
        read_rows([path])
    (line,) = caught.value.problems
    return line.removeprefix(f"{path}: ")


PARTS = [{"type": "text", "text": "o"}, {"type": "text", "text": "ne"}]
SAME = {
    "one question": [
        {"messages": [USER, ANSWER]},
        {"messages": [{**USER, "content": PARTS}, ANSWER]},
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]},
        {"conversations": [{"from": "user", "value": "one"}, {"from": "gpt", "content": "two"}]},
        {"conversations": [USER, ANSWER]},
        {"instruction": "one", "output": "two"},
        {"instruction": "one", "input": "", "output": "two", "history": []},
        {"instruction": "one", "context": "", "response": "two", "category": "open_qa"},
        {"prompt": "one", "completion": "two"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": "two"},
        {"prompt": "one", "completion": [ANSWER]},
        {"prompt": "one", "response": "two"},
        {"question": "one", "answer": "two"},
        {"question": "one", "response": "two", "system_prompt": ""},
        {"query": "one", "response": "two", "type": "x"},
        {"query": "one", "answer": "two"},
    ],
    "after a system turn": [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [USER, ANSWER], "system": "Count."},
        {
            "conversations": [
                {"from": "system", "value": "Count."},
                {"from": "human", "value": "one"},
                {"from": "gpt", "value": "two"},
            ]
        },
        {"instruction": "one", "output": "two", "system": "Count."},
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        {"prompt": "one", "completion": "two", "system": "Count."},
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}],
         "system": "Count."},
        {"instruction": "one", "response": "two", "system": "Count."},
        {"system_prompt": "Count.", "question": "one", "response": "two"},
    ],
    "after a history": [
        {"messages": [USER, ANSWER, {**USER, "content": "three"}, {**ANSWER, "content": "four"}]},
        {"instruction": "three", "output": "four", "history": [["one", "two"]]},
    ],
    "on something": [
        {"instruction": "Add", "input": "1 2", "output": "3"},
        {"instruction": "Add", "context": "1 2", "response": "3"},
        {"question": "Add", "context": "1 2", "answer": "3"},
    ],
    "of a tool": [
        {
            "conversations": [
                {"from": "human", "value": "one"},
                {"from": "gpt", "value": "I ask."},
                {"from": name, "value": "1"},
                {"from": "gpt", "value": "two"},
            ]
        }
        for name in ("function", "observation", "tool")
    ],
    "with calls": [
        {"messages": [USER, CALLING, {"role": "tool", "content": "1"}, ANSWER], "tools": TOOLS},
        {"messages": [USER, {**CALLING, "content": ""}, {"role": "tool", "content": "1"}, ANSWER],
         "tools": json.dumps(TOOLS)},
        {"messages": [USER, {**CALLING, "tool_calls": json.dumps([CALL])},
                      {"role": "tool", "content": "1"}, ANSWER], "tools": TOOLS},
        {"prompt": [USER], "completion": [CALLING, {"role": "tool", "content": "1"}, ANSWER],
         "tools": TOOLS},
        *(
            {"conversations": [
                {"from": "human", "value": "one"},
                {"from": "function_call", "value": json.dumps(value)},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "two"},
            ], "tools": json.dumps(TOOLS)}
            for value in (CALL["function"], [CALL["function"]])
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "template"),
    [
        *((name, "tools.jinja") for name in SAME),
        *((name, "llama3") for name in SAME if name != "with calls"),
        *((name, "chatml") for name in SAME if name != "with calls"),
        *((name, "alpaca") for name in SAME if name not in ("with calls", "of a tool")),
    ],
)
def test_the_same_conversation_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, template: str
) -> None:
    """Only of a tool's turns and calls does it depend on the template whether it has them."""
    monkeypatch.chdir(tmp_path)
    Path("tools.jinja").write_text(WITH_TOOLS)
    tokenizer = with_llama3s_tokens(tmp_path / "tokenizer")
    first, *others = SAME[name]
    expected = examples(write(tmp_path, first), tokenizer, template)
    assert sum(example.supervised for example in expected) > 1
    for other in others:
        assert examples(write(tmp_path, other), tokenizer, template) == expected, other


def test_what_was_answered_in_a_prompt_is_not_learnt_again(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    three = {**USER, "content": "three"}
    pair = {"prompt": [USER, ANSWER, three], "completion": [{**ANSWER, "content": "four"}]}
    chat = {"messages": [USER, ANSWER, three, {**ANSWER, "content": "four"}]}
    (of_pair,) = examples(write(tmp_path, pair), tokenizer)
    (of_chat,) = examples(write(tmp_path, chat), tokenizer)
    assert of_pair.input_ids == of_chat.input_ids
    assert tokenizer.decode([i for i in of_pair.labels if i != IGNORE]) == "four"


@pytest.mark.parametrize("switch", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_a_turn_can_be_switched_off(
    tmp_path: Path, tokenizer: Tokenizer, switch: dict[str, Any]
) -> None:
    on = {"weight": 1} if "weight" in switch else {"train": True}
    turns = [USER, {**ANSWER, **switch}, USER, {**ANSWER, "content": "good", **on}]
    for record in (
        {"messages": turns},
        {"conversations": [{**t, "from": t["role"], "value": t["content"]} for t in turns]},
    ):
        for turn in record.get("conversations", []):
            del turn["role"], turn["content"]
        path = write(tmp_path, record)
        (example,) = examples(path, tokenizer)
        assert tokenizer.decode([i for i in example.labels if i != IGNORE]) == "good"
        assert example.supervised == 5, "the end token too"
        assert "not read" not in report(path, tokenizer)


def test_a_row_with_every_answer_switched_off_is_skipped(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    off = {"messages": [USER, {**ANSWER, "weight": 0}]}
    path = write(tmp_path, off, {"messages": [USER, ANSWER]})
    assert "1 skipped, no answer in it is to be learnt (row 1)" in report(path, tokenizer)


def test_what_a_turn_holds_besides_its_content(tmp_path: Path) -> None:
    turns = [
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "assistant", "reasoning_content": "so", "content": "two", "tool_calls": []},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = (
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        turns[2],
        {"role": "assistant", "content": "two", "reasoning_content": "so"},
    )
    for given in (tools, json.dumps(tools)):
        found = row(tmp_path, {"messages": turns, "tools": given})
        assert (found.messages, found.tools, found.unread) == (expected, tools, ())


def test_fields_that_are_not_read_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = report(
        write(
            tmp_path,
            {"messages": [USER, {**ANSWER, "rating": 3}], "id": 7, "source": ""},
            {"messages": [{**USER, "weight": 1, "tool_calls": [CALL]}, ANSWER], "id": 8},
            {
                "messages": [{**USER, "content": [{**PARTS[0], "cache": 1}]}, ANSWER],
                "tools": [CALL],
            },
        ),
        tokenizer,
    )
    for line in (
        '2 rows have "id", which is not read (rows 1, 2)',
        '1 row has "rating of a turn", which is not read (row 1)',
        '1 row has "weight of a turn", which is not read (row 2)',
        '1 row has "tool_calls of a turn", which is not read (row 2)',
        '1 row has "cache of a part of a turn", which is not read (row 3)',
        '1 row has "tools", which the template does not write (row 3)',
    ):
        assert f"; {line}" in said
    assert "source" not in said, "an empty field says nothing"


def test_columns_of_a_table_that_a_row_does_not_have(tmp_path: Path) -> None:
    """A table fills them with null: they are not this row's, down to the arguments of a call."""
    other = {"function": {"name": "g", "arguments": {"b": 2}}, "type": "function"}
    records = [
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in (CALL, other)
    ]
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as stream:
        stream.write_table(table)
    with pyarrow.ipc.new_file(tmp_path / "rows.feather", table.schema) as file:
        file.write_table(table)
    expected = read_rows([write(tmp_path, *records)]).rows
    assert expected[0].messages[1].get("tool_calls") == [CALL]
    for name in ("rows.parquet", "rows.arrow", "rows.feather"):
        assert read_rows([tmp_path / name]).rows == expected


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.csv"
    lines = ["\ufeffprompt,completion", "007,two", "", '"a, ""b""\nc",', ""]
    path.write_text("\r\n".join(lines).replace(",", mark), encoding="utf-8")
    rows = read_rows([path]).rows
    said = [(row.messages[0]["content"], row.messages[1]["content"]) for row in rows]
    assert said == [("007", "two"), (f'a{mark} "b"\nc', "")]
