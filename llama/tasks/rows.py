"""A file of questions, all of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.data.columns import Columns, Renamer
from llama.data.fields import Fields, kind
from llama.data.records import Problems, read_records
from llama.errors import UserError, raise_if
from llama.tasks.kinds import KINDS
from llama.tasks.task import QUESTION, Question, Task
from llama.tokenizer.base import Message

EXPECTED = (
    f"expected {' or '.join(map(repr, QUESTION))}, and 'choices' with 'answer', 'pattern', or "
    "'answer' alone; --columns renames others"
)


@dataclass(frozen=True)
class TaskFile:
    """The questions of a file."""

    path: Path
    kind: Task[Any]
    unit: str
    """What the numbers of its rows count: `row`, or `line` of a JSONL file."""
    questions: list[Question]
    unread: dict[str, int]
    """Fields that are not read, with the number of rows that have them."""
    own: dict[tuple[str, str], int]
    """Columns, as `Row.own` has them, with the number of rows that are read by their own."""


def read_task(path: Path, columns: Columns = ()) -> TaskFile:
    """Read `path`, `columns` renamed. Raises UserError with every problem of it, a line each."""
    records, unit = read_records(path)
    if not records:
        raise UserError(f"{path}: holds no rows")
    problems = Problems(path)
    renamer = Renamer(columns)
    first: Task[Any] | None = None
    questions: list[Question] = []
    unread: dict[str, int] = {}
    own: dict[tuple[str, str], int] = {}
    for number, record in records:
        place = f"{unit} {number}"
        if not isinstance(record, dict):
            problems.add_kind(place, f"is {kind(record)}, not an object; {EXPECTED}")
            continue
        record, of_its_own = renamer.renamed(record)
        fields = Fields(record, place, problems)
        task = next((task for task in KINDS if fields.has(task.told_by)), None)
        first = first or task
        if task is None:
            problems.add_kind(place, f"has none of the fields that say what is right; {EXPECTED}")
        elif task is not first:
            assert first is not None
            are = f"is of {task.name}, and the rows before it of {first.name}; part them"
            problems.add_kind(place, are)
        else:
            question = Question(number, _messages(fields), task.read(fields))
            if fields.sound:
                questions.append(question)
                for name in fields.unread:
                    unread[name] = unread.get(name, 0) + 1
                for pair in of_its_own:
                    own[pair] = own.get(pair, 0) + 1
    raise_if(renamer.problems(str(path)))
    problems.raise_any()
    assert first is not None
    return TaskFile(path, first, unit, questions, unread, own)


def _messages(fields: Fields) -> tuple[Message, ...]:
    name = next((name for name in QUESTION if fields.has(name)), QUESTION[0])
    asked = Message(role="user", content=fields.text(name))
    if not fields.has("system"):
        return (asked,)
    return (Message(role="system", content=fields.text("system")), asked)
