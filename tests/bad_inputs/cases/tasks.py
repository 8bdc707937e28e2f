"""What `evaluate --task` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.bad_inputs.setting import Case, Setting


def asked(*rows: Any, **options: str) -> Callable[[Setting], None]:
    """These rows as the task's file, and more options."""

    def spoil(setting: Setting) -> None:
        del setting.options["data"]
        lines = [json.dumps(row) + "\n" for row in rows]
        setting.path("task.jsonl").write_text("".join(lines))
        setting.options.update({"task": "task.jsonl", **options})

    return spoil


def option(**options: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(options)


def neither(setting: Setting) -> None:
    del setting.options["data"]


def of_no_run(setting: Setting) -> None:
    neither(setting)
    setting.options["adapter"] = "adapter"


ROW = {"question": "q", "answer": "a"}
CHOICE = {"question": "q", "choices": ["x", "y"], "answer": 0}
Refused = partial(Case, command="evaluate")
CASES = [
    Refused("neither rows nor a task", neither, ("--data: expected one or more files",)),
    Refused("both of them", option(task="rows.json"), ("--data: --task takes its place",)),
    Refused(
        "options of an adapter and of a task without one",
        option(compare="true", output="out.jsonl"),
        ("--compare: lays the model beside its adapter", "--output: has no effect without --task"),
    ),
    Refused("no such task", asked(ROW, task="tsk.jsonl"), ("did you mean task.jsonl?",)),
    Refused("no adapter to compare with", asked(ROW, compare="true"), ("--compare: lays",)),
    Refused("an output nowhere", asked(ROW, output="no/out.jsonl"), ("no does not exist",)),
    Refused(
        "an output that holds something",
        asked(ROW, output="rows.json"),
        ("--output: rows.json holds something already",),
    ),
    Refused("rows of what is no run", of_no_run, ("--data: expected one or more files",)),
    Refused("three ranks' worth", asked(ROW, tensor_parallel="3"), ("--tensor_parallel: 1",)),
    Refused("no right answer", asked({"question": "q"}), ("line 1: has none of the fields",)),
    Refused("no question", asked(ROW, {"answer": "a"}), ("line 2: field 'question' is missing",)),
    Refused("an empty answer", asked({**ROW, "answer": " "}), ("field 'answer' holds no text",)),
    Refused("one choice", asked({**CHOICE, "choices": ["x"]}), ("field 'choices' has 1",)),
    Refused("equal choices", asked({**CHOICE, "choices": ["x", "x"]}), ("holds a text twice",)),
    Refused("an answer past the choices", asked({**CHOICE, "answer": 2}), ("'answer' is 2",)),
    Refused(
        "no regular expression",
        asked({"question": "q", "pattern": "(a"}),
        ("line 1: field 'pattern' is no regular expression",),
    ),
    Refused("two kinds of rows", asked(ROW, CHOICE), ("line 2: is of multiple choice",)),
    Refused(
        "a question past the model's positions",
        asked(ROW, {**ROW, "question": "q" * 300}, max_new_tokens="8"),
        ("line 2: with its answer it has",),
    ),
]
