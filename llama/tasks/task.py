"""What every kind of task is asked: how a row becomes a question, and when its answer is right.

A kind is one file of this folder with a class of these methods, and one line in `kinds.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from llama.data.fields import Fields
from llama.tokenizer.base import Message

QUESTION = ("question", "prompt")
"""Names under which a row holds what is asked."""


@dataclass(frozen=True)
class Question:
    """One row: what is asked, and what its kind knows of a right answer."""

    row: int
    """Its number in the file."""
    messages: tuple[Message, ...]
    """Up to the answer."""
    key: Any
    """What the kind's `read` gave."""


@dataclass(frozen=True)
class Judged:
    """What came of one question."""

    answer: str
    """What the model said, or chose."""
    right: dict[str, bool]
    """By name of each measure of the kind."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else the row of --output says."""
    warning: str | None = None
    """What the user is to be told of it."""


class Respondent(Protocol):
    """A model that is asked. Every rank of a model that is spread over ranks asks the same."""

    def answers(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """The likeliest text after each prompt."""
        ...

    def log_likelihoods(self, prompt: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """Of each of `answers` the natural logarithm of its probability after `prompt`, summed over
        its tokens, without the token that ends a turn."""
        ...


Key = TypeVar("Key", covariant=True)


class Task(Protocol, Generic[Key]):
    """A kind of question; `Key` is what it knows of a right answer."""

    name: ClassVar[str]
    told_by: ClassVar[str]
    """The field that rows of this kind have, and rows of the kinds below it in the table do not."""
    measures: ClassVar[tuple[str, ...]]
    """Names of what is counted, as lm-evaluation-harness has them."""

    def read(self, fields: Fields) -> Key:
        """What makes an answer right. What cannot be used is noted in `fields`."""
        ...

    def choices(self, question: Question) -> Sequence[str]:
        """The answers whose likelihood is asked; none where the model writes its own."""
        ...

    def judge(self, questions: Sequence[Question], respondent: Respondent) -> list[Judged]:
        """Ask `questions`, some of one file, and judge each answer."""
        ...
