"""Whether a regular expression is found in the model's answer."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from llama.data.fields import Fields
from llama.tasks.task import Judged, Question, Respondent

SECONDS = 2.0
"""How long one expression may look at one answer: some take longer than the universe is old."""


class Pattern:
    """Python's `re.search`; an expression may begin with `(?i)` and the like."""

    name: ClassVar[str] = "regular expression"
    told_by: ClassVar[str] = "pattern"
    measures: ClassVar[tuple[str, ...]] = ("found",)

    def read(self, fields: Fields) -> re.Pattern[str]:
        text = fields.text("pattern")
        try:
            return re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            why = str(error) or "it is nested too deeply"
            fields.refuse(f"field 'pattern' is no regular expression of Python's: {why}")
            return re.compile("")

    def choices(self, question: Question) -> Sequence[str]:
        return ()

    def judge(self, questions: Sequence[Question], respondent: Respondent) -> list[Judged]:
        said = respondent.answers([question.messages for question in questions])
        return [_judged(question, text) for question, text in zip(questions, said, strict=True)]


def _judged(question: Question, text: str) -> Judged:
    pattern: re.Pattern[str] = question.key
    details = {"pattern": pattern.pattern}
    try:
        with _at_most(SECONDS):
            return Judged(text, {"found": pattern.search(text) is not None}, details)
    except TimeoutError:
        slow = f"field 'pattern' took more than {SECONDS:g} s to look through "
        slow += "the answer, which is counted as wrong: write it without nested repetition"
        return Judged(text, {"found": False}, details, slow)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within after so long: `re` looks for signals while it searches. To be used
    by the main thread, where Python handles them."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
