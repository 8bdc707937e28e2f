"""`data`: what it says of rows is what a run makes of them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama.commands.data.command import show_data
from llama.commands.data.facts import Whole, bins, pieces, whole_row
from llama.data.prepare import Reading, prepare
from llama.data.rows import Row
from llama.errors import UserError
from llama.settings import DataOptions
from llama.tokenizer.base import IGNORE
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.huggingface import HuggingFaceReader
from tests.support.model_files import ROOT, TINY, write_huggingface
from tests.support.tokenizer_files import (
    byte_tokenizer,
    write_sentencepiece,
    write_tokenizer_json,
)

SEQ_LEN = 64


def turns(question: str, answer: str) -> dict[str, Any]:
    return {
        "dialog": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


ROWS = [turns("one", "two"), turns("one", "two"), turns("a <|im_end|>\x1b[31m", "日本"),
        turns("long " * 40, "x"), turns("short", "an answer that is " + "long " * 40)]  # fmt: skip
HELD_OUT = [turns("one", "two"), turns("another", "one")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With rows and a model in it, whose weights nothing may read."""
    write_huggingface(tmp_path / "model", replace(TINY, vocab_size=300))
    monkeypatch.setattr(HuggingFaceReader, "read", None)
    write_tokenizer_json(tmp_path / "model")
    for name, rows in (("rows", ROWS), ("held", HELD_OUT)):
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def options(**changed: Any) -> DataOptions:
    given: dict[str, Any] = {
        "model": "model",
        "template": "chatml",
        "data": [Path("rows.jsonl")],
        "eval_data": [Path("held.jsonl")],
        "columns": (("messages", "dialog"),),
        "seq_len": SEQ_LEN,
    }
    return DataOptions(**(given | changed))


def document(capsys: pytest.CaptureFixture[str], **changed: Any) -> dict[str, Any]:
    assert show_data(options(json=True, **changed)) == 0
    return json.loads(capsys.readouterr().out)


def page(capsys: pytest.CaptureFixture[str], **changed: Any) -> str:
    assert show_data(options(**changed)) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_its_figures_are_those_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys)
    tokenizer = load_tokenizer(Path("model"))
    template = load_template("chatml", tokenizer)
    columns = (("messages", "dialog"),)
    run = prepare([Path("rows.jsonl")], template, tokenizer, Reading(SEQ_LEN, columns=columns))
    assert found["data"]["files"] == [
        {"path": "rows.jsonl", "rows": 5, "form": "messages", "columns": ["dialog"]}
    ]
    for name in ("rows", "examples", "tokens", "supervised_tokens"):
        assert found["data"][name] == getattr(run.report, name), name
    assert found["data"]["packed_rows"] == len(run.packed)
    assert found["data"]["said"] == run.report.text()


@pytest.mark.usefixtures("folder")
def test_lengths_are_those_of_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = document(capsys)["data"]["lengths"]
    tokenizer = load_tokenizer(Path("model"))
    template = load_template("chatml", tokenizer)
    expected = sorted(
        len(template.render(row["dialog"], tokenizer)[0])  # pyright: ignore[reportArgumentType]
        for row in ROWS
    )
    assert (lengths["shortest"], lengths["median"], lengths["longest"]) == (
        expected[0], expected[2], expected[4],
    )  # fmt: skip
    assert lengths["fit"] == sum(length <= SEQ_LEN for length in expected) == 3
    for bar in lengths["histogram"]:
        assert bar["rows"] == sum(bar["from"] <= length <= bar["to"] for length in expected)
    assert sum(bar["rows"] for bar in lengths["histogram"]) == 5


@pytest.mark.usefixtures("folder")
def test_duplicates_within_and_between(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys)["duplicates"] == {
        "data": [2],
        "eval_data": [],
        "eval_data_in_data": [1],
    }
    alone = document(capsys, eval_data=[])
    assert alone["duplicates"]["eval_data_in_data"] == [] and "eval_data" not in alone


@pytest.mark.usefixtures("folder")
def test_a_row_is_shown_as_it_is_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = document(capsys, rows=("1",))["shown"]
    assert [(p["text"], p["learnt"], p["control"]) for p in row["pieces"]] == [
        ("<s>", False, True),
        ("<|im_start|>", False, True),
        ("user\none", False, False),
        ("<|im_end|>", False, True),
        ("\n", False, False),
        ("<|im_start|>", False, True),
        ("assistant\n", False, False),
        ("two", True, False),
        ("<|im_end|>", True, True),
        ("\n", False, False),
    ]
    assert row["supervised_tokens"] == 4


@pytest.mark.usefixtures("folder")
def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    said = page(capsys, rows=("3", "5"))
    assert "rows.jsonl: 5 rows, messages (dialog)" in said
    assert f"--seq_len {SEQ_LEN}: 3 of 5 rows fit (60.0%)" in said
    assert "among the training rows: 1 (row 2)" in said
    assert "held-out rows that are trained on: 1 (row 1)" in said
    assert "a \\<|im_end|>\\x1b[31m<|im_end|>" in said, "text of its own apart from a control token"
    assert "⟦日本<|im_end|>⟧" in said
    assert "\x1b" not in said, "no terminal, no colour"
    assert "past --seq_len" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.usefixtures("folder")
def test_colour_marks_what_is_learnt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    said = page(capsys, rows=("1",))
    assert "\x1b[32mtwo\x1b[0m\x1b[1;32m<|im_end|>" in said and "⟦" not in said
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in page(capsys, rows=("1",))


@pytest.mark.usefixtures("folder")
def test_three_rows_are_shown_of_their_own_accord(capsys: pytest.CaptureFixture[str]) -> None:
    said = page(capsys)
    assert "row 1, the first:" in said
    assert "row 3, of median length:" in said and "row 5, the longest:" in said


@pytest.mark.usefixtures("folder")
def test_a_row_that_no_run_takes_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"left out: longer than --seq_len {SEQ_LEN}" in page(capsys, rows=("4",))
    said = page(capsys, rows=("4",), overlong="cut")
    assert f"left out: its prompt alone has {SEQ_LEN} tokens or more" in said
    (row,) = document(capsys, rows=("5",), overlong="cut")["shown"]
    assert row["left_out"] is None and row["tokens"] > SEQ_LEN


@pytest.mark.usefixtures("folder")
def test_rows_that_are_split_off(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the three examples that fit, those of equal rows stay together."""
    found = document(capsys, eval_data=[], eval_split=1.0, rows=("1", "2", "3"), seed=3)
    assert found["data"]["examples"] + found["eval_data"]["examples"] == 3
    held = [row["row"] for row in found["shown"] if row["left_out"] == "held out by --eval_split"]
    assert len(held) == found["eval_data"]["examples"] and held in ([1, 2], [3])
    assert found["duplicates"]["eval_data_in_data"] == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": ("6",)}, "--rows: rows.jsonl has no row 6; it has 5, numbered from 1 to 5"),
        ({"rows": ("0", "x")}, "--rows: expected numbers of rows from 1 on, as 3,17, found '0'"),
        ({"columns": ()}, "rows.jsonl: line 1: has none of the known fields (it has dialog)"),
        ({"seq_len": 1}, "--seq_len: expected at least 2, found 1"),
        ({"model": "random:llama-7b"}, "--model random:llama-7b: no tokenizer was found beside"),
        ({"data": [Path("rows.josnl")]}, "--data: rows.josnl does not exist; did you mean"),
        ({"seq_len": 8}, "rows.jsonl: 5 of its 5 rows are longer than --seq_len 8"),
        (
            {"eval_split": 0.5},
            "--eval_split: --eval_data says what is held out; give one of them",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_input_is_what_train_says(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        show_data(options(**changed))
    assert caught.value.problems[0].startswith(said)


def test_sentencepiece_loses_no_space_where_learning_begins(tmp_path: Path) -> None:
    """Its decoder drops the space that a text begins with: the answer is no text that begins."""
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    ids = tokenizer.encode("the question and the answer")
    begin = next(i for i in range(1, len(ids)) if tokenizer.decode(ids[:i]).endswith("question"))
    whole = Whole([1, *ids, 2], [IGNORE] * (begin + 1) + [*ids[begin:], 2])
    found = pieces(whole, tokenizer)
    assert "".join(piece.text for piece in found) == "<s>the question and the answer</s>"
    assert [piece.text for piece in found if piece.learnt] == [" and the answer", "</s>"]


def test_a_text_is_learnt_but_for_its_first_token(tmp_path: Path) -> None:
    """Nothing comes before that one by which to predict it."""
    tokenizer = byte_tokenizer(tmp_path)
    whole = whole_row(Row(1, text="hey"), load_template("chatml", tokenizer), tokenizer)
    found = [(piece.text, piece.learnt) for piece in pieces(whole, tokenizer)]
    assert found == [("<s>", False), ("hey", True), ("</s>", True)]
    assert whole.supervised == 3, "he, y and the end"


def test_no_bin_has_rows_on_both_sides_of_the_limit() -> None:
    found = bins(np.array([10, 100, 100, 101, 5000]), 100)
    assert (97, 100, 2) in found and (101, 128, 1) in found
    assert sum(rows for _, _, rows in found) == 5
    for (_, last, _), (first, _, _) in itertools.pairwise(found):
        assert first == last + 1


def test_as_a_command(folder: Path) -> None:
    words = ["rows.jsonl", "--columns", "messages=dialog", "--model", "model", "--rows", "1"]
    words += ["--seq_len", str(SEQ_LEN)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launcher" / "data.py"), *words, "--template", "chatml"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[[two<|im_end|>]]" in done.stdout and done.stdout.isascii()
