"""What is said of a row that has none of the forms, or one of them wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama.data.rows import read_rows
from llama.errors import UserError
from tests.unit.data.test_forms import ANSWER, CALL, SYSTEM, USER, problem, write


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "is a preference pair (chosen and"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "is a preference pair"),
        ({"prompt": "a", "completion": "b", "label": False}, "is a judged answer (KTO"),
        ({"prompt": "a", "chosen": "b"}, "is a preference pair (chosen and rejected), from which"),
        ({"messages": [USER, ANSWER], "kto_tag": True}, "is a judged answer (KTO"),
        ({"segments": [{"label": True, "text": "a"}]}, "is text in segments (Axolotl's template"),
        (
            {"instruction": "a", "output": "b", "system": "c", "system_prompt": "d"},
            "has `system` and `system_prompt`; keep one of them",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"},
                               {"from": "function_call", "value": "f()"}]},
            "field 'conversations', turn 2, field 'value' is not a call, {\"name\": ...",
        ),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "holds tokens (input_ids), not text"),
        ({"messages": [USER, ANSWER], "images": ["x.png"]}, "holds images"),
        ({"messages": [USER, ANSWER], "functions": [CALL]}, "has `functions`, which is not read"),
        ({"messages": [USER, ANSWER], "documents": [{"text": "x"}]}, "has `documents`"),
        ({"messages": [USER, ANSWER], "tools": "f"}, "field 'tools' is a string, not a list"),
        ({"messages": [USER, ANSWER], "tools": ["f"]}, "field 'tools' is a list, not a list of"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "x"}, "has a field 'system' and a system"),
        (
            {"messages": [USER, {**ANSWER, "weight": 0.5}]},
            "field 'messages', turn 2, field 'weight' is 0.5; known are 0 and 1",
        ),
        ({"messages": [USER, {**ANSWER, "train": 1}]}, "field 'messages', turn 2, field 'train'"),
        (
            {"messages": [USER, {**ANSWER, "train": True, "weight": 0}]},
            "field 'messages', turn 2 has `weight` 0 and `train` true; keep one",
        ),
        (
            {"messages": [USER, {**ANSWER, "loss": False}]},
            "field 'messages', turn 2 has `loss`, which is not read; say which turns are learnt by",
        ),
        (
            {"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]},
            "field 'messages', turn 2 has `function_call`, which is not read; give it as `tool_ca",
        ),
        (
            {"messages": [USER, {**ANSWER, "thinking": "a", "reasoning_content": "b"}]},
            "field 'messages', turn 2 has several fields of reasoning that differ",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url", "url": "x"}]}, ANSWER]},
            "field 'messages', turn 1, field 'content', part 1 is of type 'image_url'; only text",
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": "f()"}]},
            "field 'messages', turn 2, field 'tool_calls' is a string, not a list of objects",
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"f": "\ud800"}]}]},
            "field 'messages', turn 2, field 'tool_calls' holds half of a surrogate pair",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}]},
            "field 'conversations', turn 2 has the role 'bot'; known are system, human, user, gpt",
        ),
        ({"conversations": [{"from": "gpt"}]}, "field 'conversations', turn 1, field 'valu"),
        ({"instruction": "a", "output": "b", "history": "x"}, "field 'history' is a string, not"),
        (
            {"instruction": "a", "output": "b", "history": [["x"]]},
            "field 'history', pair 1 is a list of 1, not [question, answer]",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["x", 1]]},
            "field 'history', pair 1, answer is a number, not a string",
        ),
        ({"prompt": [USER], "completion": [USER]}, "field 'completion' has no assistant turn"),
        ({"instruction": "a", "context": "b"}, "field 'response' is missing"),
        ({"instruction": "a", "response": None}, "field 'response' is missing"),
        ({"instruction": "a", "input": "b"}, "field 'output' is missing"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_it_is(tmp_path: Path, record: Any, said: str) -> None:
    assert problem(tmp_path, record).startswith(f"row 1: {said}")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"dialog": [USER, ANSWER]}, "--columns messages=dialog"),
        ({"talk": [{"from": "human", "value": "a"}]}, "--columns conversations=talk"),
        ({"question": "a", "solution": "b"}, "--columns prompt=NAME,completion=NAME"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--columns completion=chosen"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "--columns messages=chosen"),
    ],
)
def test_how_a_row_could_be_read_is_said(tmp_path: Path, record: Any, said: str) -> None:
    assert said in problem(tmp_path, record)


def test_a_file_of_another_form_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"prompt": "a", "chosen": "b", "rejected": "c"}] * 40)
    with pytest.raises(UserError) as caught:
        read_rows([path])
    (line,) = caught.value.problems
    assert "row 1: is a preference pair" in line and line.endswith("; so are 39 more")


def test_tools_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    tools = '[{"a":' + "[" * 400 + "]" * 400 + "}]"
    path.write_text(f'[{{"messages": {json.dumps([USER, ANSWER])}, "tools": {tools}}}]')
    with pytest.raises(UserError, match="row 1: field 'tools' is nested deeper than 50"):
        read_rows([path])
