"""What is written as JSON is JSON, whatever the numbers."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest

from llama.files.json_text import json_text
from tests.support.model_files import ROOT

NOT_WRITTEN = {
    "llama/commands/doctor/command.py": "a request, which holds no measurement",
    "llama/commands/export/server.py": "a request, which holds no measurement",
    "llama/data/store/entry.py": "an index of whole numbers, whose text is hashed",
    "llama/data/store/keys.py": "what a key is made of",
    "llama/settings/deepspeed_json/check.py": "a value shown in a message",
    "llama/settings/deepspeed_json/read.py": "a value shown in a message",
    "llama/settings/deepspeed_json/resolve.py": "a value shown in a note",
    "llama/tokenizer/bpe.py": "a tokenizer's description, for the library",
    "llama/tokenizer/jinja_sandbox.py": "what a template asks for",
    "llama/tokenizer/json_file.py": "a description searched for a word",
    "llama/tokenizer/marks.py": "a text as a template writes it",
    "llama/train/start/sameness.py": "values compared between ranks",
    "llama/weights/fields.py": "a value shown in a message",
}
"""Files that call `json.dumps` themselves, once each or more, and why they may."""


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(bad: float) -> None:
    document = {"a": bad, "b": [1, bad, (bad, 2.5)], "c": {"d": bad, "e": "NaN"}, "f": True}
    expected = {"a": None, "b": [1, None, [None, 2.5]], "c": {"d": None, "e": "NaN"}, "f": True}
    assert strict(json_text(document)) == expected


def test_what_json_cannot_hold_is_left_to_the_caller() -> None:
    assert strict(json_text({"path": Path("a")}, default=str)) == {"path": "a"}
    with pytest.raises(TypeError):
        json_text({"path": Path("a")})


def test_all_that_is_written_goes_through_it() -> None:
    own = ROOT / "llama" / "files" / "json_text.py"
    found = {
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "llama").rglob("*.py"))
        if path != own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("dumps", "dump")
        if isinstance(node.value, ast.Name) and node.value.id == "json"
    }
    assert found == set(NOT_WRITTEN)
