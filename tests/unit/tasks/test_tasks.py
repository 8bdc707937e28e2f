"""Rows of each kind, and what is right; the model is played."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama.errors import UserError
from llama.tasks import pattern as pattern_module
from llama.tasks.kinds import KINDS
from llama.tasks.rows import TaskFile, read_task
from llama.tasks.task import Judged
from llama.tokenizer.base import Message


class Played:
    """Says `said` to everything; of the likelihoods it gives -1 for each letter, and `likes`."""

    def __init__(self, said: str = "", **likes: float) -> None:
        self._said = said
        self._likes = likes
        self.asked: list[Sequence[Message]] = []

    def answers(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        self.asked += prompts
        return [self._said] * len(prompts)

    def log_likelihoods(self, prompt: Sequence[Message], answers: Sequence[str]) -> list[float]:
        self.asked.append(prompt)
        return [self._likes.get(answer, -float(len(answer))) for answer in answers]


def task(path: Path, *rows: Any, columns: tuple[tuple[str, str], ...] = ()) -> TaskFile:
    path = path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_task(path, columns)


def judged(file: TaskFile, respondent: Played) -> list[Judged]:
    return file.kind.judge(file.questions, respondent)


def test_a_choice_by_sum_and_by_length(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["aa", "bbbbbbbb"], "answer": 1, "system": "s"}
    file = task(tmp_path, row)
    respondent = Played(aa=-2.0, bbbbbbbb=-4.0)  # 1 and 0.5 a character
    (found,) = judged(file, respondent)
    assert (found.answer, found.right) == ("aa", {"acc": False, "acc_norm": True})
    assert [message["role"] for message in respondent.asked[0]] == ["system", "user"]
    assert found.details["log_likelihoods"] == [-2.0, -4.0]
    assert file.kind.choices(file.questions[0]) == ("aa", "bbbbbbbb")


@pytest.mark.parametrize(
    ("answer", "choices", "right"),
    [
        (1, ["x", "y"], "y"),
        ("B", ["x", "y"], "y"),
        ("1", ["x", "y"], "y"),
        ("y", ["x", "y"], "y"),
        ("B", ["B", "A"], "B"),  # its text before its letter
        ("1", ["2", "1", "0"], "1"),
    ],
)
def test_how_a_row_names_the_right_choice(
    answer: Any, choices: list[str], right: str, tmp_path: Path
) -> None:
    (question,) = task(tmp_path, {"prompt": "q", "choices": choices, "answer": answer}).questions
    assert question.key.texts[question.key.right] == right


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("four", " four\n", True),
        ("four", "Four", False),
        (["4", "four"], "four", True),
        ('["4", "four"]', "4", True),
        ("4", "44", False),
    ],
)
def test_exact_match(answer: Any, said: str, right: bool, tmp_path: Path) -> None:
    file = task(tmp_path, {"question": "2 + 2?", "answer": answer})
    (found,) = judged(file, Played(said))
    assert found.right == {"exact_match": right} and found.answer == said


@pytest.mark.parametrize(
    ("pattern", "said", "right"),
    [(r"(?i)\bparis\b", "It is PARIS.", True), ("paris", "PARIS", False), (r"^\d+$", "12", True)],
)
def test_a_pattern(pattern: str, said: str, right: bool, tmp_path: Path) -> None:
    (found,) = judged(task(tmp_path, {"question": "q", "pattern": pattern}), Played(said))
    assert found.right == {"found": right} and found.warning is None


def test_a_pattern_that_would_take_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pattern_module, "SECONDS", 0.1)
    file = task(tmp_path, {"question": "q", "pattern": "(a+)+$"}, {"question": "q", "pattern": "b"})
    slow, quick = judged(file, Played("a" * 60 + "b"))
    assert slow.right == {"found": False} and quick.right == {"found": True}
    assert slow.warning is not None and "field 'pattern' took more than" in slow.warning


def test_columns_and_what_is_not_read(tmp_path: Path) -> None:
    row = {"input": "q", "gold": "a", "id": 3}
    file = task(tmp_path, row, row, columns=(("question", "input"), ("answer", "gold")))
    assert file.questions[0].key == ("a",) and file.unread == {"id": 2}
    assert file.own == {}
    lacking = {"input": "q", "gold": None, "answer": "b"}
    file = task(tmp_path, row, lacking, columns=(("question", "input"), ("answer", "gold")))
    assert file.questions[1].key == ("b",) and file.own == {("answer", "gold"): 1}


def test_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('question,choices,answer\nq,"[""x"", ""y""]",1\n')
    (question,) = read_task(path).questions
    assert question.key.right == 1


CHOICES = ["x", "y"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, "line 1: has none of the fields that say what is right; expected"),
        ({"answer": "a"}, "line 1: field 'question' is missing"),
        ({"question": 3, "answer": "a"}, "line 1: field 'question' is a number, not a string"),
        ({"question": "q", "answer": 4}, "line 1: field 'answer' is a number, not a string"),
        ({"question": "q", "answer": ["a", 1]}, "field 'answer', number 2 is a number"),
        ({"question": "q", "answer": " "}, "field 'answer' holds no text"),
        ({"question": "q", "choices": "x"}, "field 'choices' is a string; expected a list"),
        ({"question": "q", "choices": ["x"]}, "field 'choices' has 1; expected a list"),
        ({"question": "q", "choices": ["x", 1]}, "field 'choices', number 2 is a number"),
        ({"question": "q", "choices": ["x", " "]}, "field 'choices' holds an empty text"),
        ({"question": "q", "choices": ["x", "x"]}, "field 'choices' holds a text twice"),
        ({"question": "q", "choices": CHOICES}, "field 'answer' is None; expected one of the 2"),
        ({"question": "q", "choices": CHOICES, "answer": 2}, "field 'answer' is 2; expected"),
        ({"question": "q", "choices": CHOICES, "answer": "C"}, "field 'answer' is 'C'; expected"),
        ({"question": "q", "choices": CHOICES, "answer": True}, "field 'answer' is True"),
        ({"question": "q", "pattern": "(a"}, "is no regular expression of Python's: missing )"),
        ({"question": "q", "pattern": 1}, "field 'pattern' is a number, not a string"),
    ],
)
def test_a_row_that_cannot_be_used(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        task(tmp_path, row)
    (line,) = caught.value.problems
    assert said in line and "task.jsonl: line 1: " in line


def test_rows_of_two_kinds(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "pattern": "a"}]
    with pytest.raises(UserError, match="line 2: is of regular expression, and the rows before"):
        task(tmp_path, *rows)


def test_every_kind_is_told_apart() -> None:
    assert len({kind.told_by for kind in KINDS}) == len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.measures for kind in KINDS)
