"""Whether the model's answer is the right one, to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from llama.data.fields import Fields, from_json_text
from llama.tasks.task import Judged, Question, Respondent


class ExactMatch:
    """The answer is one of the right ones, white space at both ends apart."""

    name: ClassVar[str] = "exact match"
    told_by: ClassVar[str] = "answer"
    measures: ClassVar[tuple[str, ...]] = ("exact_match",)

    def read(self, fields: Fields) -> tuple[str, ...]:
        value = fields.take("answer")
        parsed = from_json_text(value)
        if isinstance(parsed, list):  # of a table's column, as JSON text
            where = "field 'answer', number {}"
            texts = [fields.check(where.format(i), text) for i, text in enumerate(parsed, 1)]
        else:
            texts = [fields.check("field 'answer'", value)]
        if fields.sound and not (texts and all(text.strip() for text in texts)):
            fields.refuse("field 'answer' holds no text: nothing could be right")
        return tuple(text.strip() for text in texts)

    def choices(self, question: Question) -> Sequence[str]:
        return ()

    def judge(self, questions: Sequence[Question], respondent: Respondent) -> list[Judged]:
        said = respondent.answers([question.messages for question in questions])
        return [
            Judged(text, {"exact_match": text.strip() in question.key}, {"expected": question.key})
            for question, text in zip(questions, said, strict=True)
        ]
