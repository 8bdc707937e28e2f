"""The kinds of task: a row is of the first kind of which it has the field."""

from __future__ import annotations

from typing import Any

from llama.tasks.exact_match import ExactMatch
from llama.tasks.multiple_choice import MultipleChoice
from llama.tasks.pattern import Pattern
from llama.tasks.task import Task

KINDS: tuple[Task[Any], ...] = (MultipleChoice(), Pattern(), ExactMatch())
