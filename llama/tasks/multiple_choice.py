"""Which of several answers the model holds for the likeliest."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llama.data.fields import Fields, from_json_text, kind
from llama.tasks.task import Judged, Question, Respondent


@dataclass(frozen=True)
class Choices:
    """The choices, and the index of the right one."""

    texts: tuple[str, ...]
    right: int


class MultipleChoice:
    """The choice of the highest log-likelihood is the model's (`acc`), or that of the highest for
    each of its characters (`acc_norm`): both as lm-evaluation-harness has them, EleutherAI 2021."""

    name: ClassVar[str] = "multiple choice"
    told_by: ClassVar[str] = "choices"
    measures: ClassVar[tuple[str, ...]] = ("acc", "acc_norm")

    def read(self, fields: Fields) -> Choices:
        value = from_json_text(fields.take("choices"))
        if not isinstance(value, list) or len(value) < 2:
            found = f"has {len(value)}" if isinstance(value, list) else f"is {kind(value)}"
            fields.refuse(f"field 'choices' {found}; expected a list of two texts or more")
            return Choices((), 0)
        texts = tuple(
            fields.check(f"field 'choices', number {number}", text)
            for number, text in enumerate(value, start=1)
        )
        if fields.sound and not all(text.strip() for text in texts):
            fields.refuse("field 'choices' holds an empty text")
        elif fields.sound and len(set(texts)) < len(texts):
            fields.refuse("field 'choices' holds a text twice")
        if not fields.sound:
            return Choices((), 0)
        right = _index(fields.take("answer"), texts)
        if right is None:
            fields.refuse(
                f"field 'answer' is {repr(fields.look('answer'))[:60]}; expected one of the "
                f"{len(texts)} choices: its index from 0, its letter from A, or its text"
            )
        return Choices(texts, right or 0)

    def choices(self, question: Question) -> Sequence[str]:
        key: Choices = question.key
        return key.texts

    def judge(self, questions: Sequence[Question], respondent: Respondent) -> list[Judged]:
        judged: list[Judged] = []
        for question in questions:
            choices: Choices = question.key
            sums = respondent.log_likelihoods(question.messages, choices.texts)
            each = [total / len(text) for total, text in zip(sums, choices.texts, strict=True)]
            best, best_each = _first_highest(sums), _first_highest(each)
            judged.append(
                Judged(
                    choices.texts[best],
                    {"acc": best == choices.right, "acc_norm": best_each == choices.right},
                    {
                        "choices": list(choices.texts),
                        "expected": choices.texts[choices.right],
                        "log_likelihoods": sums,
                        "answer_norm": choices.texts[best_each],
                    },
                )
            )
        return judged


def _index(answer: Any, texts: Sequence[str]) -> int | None:
    """The choice that a row names: by its text before all, as a choice may be called A or 2."""
    if isinstance(answer, str) and answer in texts:
        return texts.index(answer)
    index = -1
    if isinstance(answer, str) and len(answer) == 1 and answer in string.ascii_uppercase:
        index = string.ascii_uppercase.index(answer)
    elif isinstance(answer, str) and answer.isascii() and answer.isdigit() and len(answer) < 4:
        index = int(answer)  # in a table every value may be text
    elif isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    return index if 0 <= index < len(texts) else None


def _first_highest(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)
