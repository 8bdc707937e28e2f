"""What came of rows, and of a task: as one JSON object, as lines for a reader; of a task row by
row too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llama.files.json_text import json_text
from llama.tasks.intervals import Difference, Share, difference_of, share_of
from llama.tasks.rows import TaskFile
from llama.tasks.task import Judged

INTERVAL = "Wilson, 95%"
OF_DIFFERENCE = "Newcombe 1998 method 10, 95%; p by McNemar's exact test"

Answers = dict[str, list[Judged]]
"""Of each side that was asked ("base", "adapter", or "model"), what came of every question."""


def perplexity(loss: float) -> float:
    """`e ** loss`; infinite beyond what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def document_of_losses(losses: Mapping[str, float], supervised: int) -> dict[str, Any]:
    """The mean loss over so many tokens of the last side in `losses`; where there is one before it,
    that one's under its name, and by how much the last is above it."""
    *others, last = losses
    result = {**_loss(losses[last]), "supervised_tokens": supervised}
    for other in others:
        result |= {other: _loss(losses[other])}
        result |= {"difference": {"loss": losses[last] - losses[other]}}
    return result


def lines_of_losses(losses: Mapping[str, float], supervised: int) -> str:
    """The same as a line, or of two sides as a table."""
    said = {
        side: f"loss {loss:.4f}, perplexity {perplexity(loss):.3f}" for side, loss in losses.items()
    }
    over = f"over {supervised:,} supervised tokens"
    *others, last = losses
    if not others:
        return f"{said[last]}, {over}"
    by = losses[last] - losses[others[0]]
    return "\n".join(
        [*(f"{side:10}  {text}" for side, text in said.items()), f"difference  {by:+.4f}, {over}"]
    )


def document(task: TaskFile, answers: Answers) -> dict[str, Any]:
    """The result: shares of right answers by side and measure, and the difference of two sides."""
    result: dict[str, Any] = {"task": task.kind.name, "rows": len(task.questions)}
    result["interval"] = INTERVAL
    for side, judged in answers.items():
        result[side] = {m: _share(share_of(verdicts(judged, m))) for m in task.kind.measures}
    if len(answers) > 1:
        result["difference_interval"] = OF_DIFFERENCE
        result["difference"] = {m: _difference(_apart(answers, m)) for m in task.kind.measures}
    return result


def lines(task: TaskFile, answers: Answers) -> str:
    """The same as a table: each share with its interval."""
    count = len(task.questions)
    said = [f"{task.path}: {task.kind.name}, {count:,} rows; intervals of 95%"]
    for measure in task.kind.measures:
        for side, judged in answers.items():
            share = share_of(verdicts(judged, measure))
            low, high = share.interval
            said.append(
                f"{measure:11}  {side:10}  {share.value:7.1%}  from {low:.1%} to {high:.1%}"
                f"  ({share.right:,} right)"
            )
        if len(answers) > 1:
            apart = _apart(answers, measure)
            low, high = apart.interval
            said.append(
                f"{measure:11}  difference  {apart.value:+7.1%}  from {low:+.1%} to {high:+.1%}"
                f"  ({apart.second_alone:,} gained, {apart.first_alone:,} lost; "
                f"p {apart.p_value:.2g})"
            )
    return "\n".join(said)


def rows(task: TaskFile, answers: Answers) -> str:
    """A JSON line for each question. The last side's verdicts are the row's own."""
    *others, last = answers
    return "".join(
        json_text(
            {
                "row": question.row,
                "question": question.messages[-1]["content"],
                **_row(answers[last][index]),
                **{side: _row(answers[side][index]) for side in others},
            },
            ensure_ascii=False,
        )
        + "\n"
        for index, question in enumerate(task.questions)
    )


def warnings(task: TaskFile, answers: Answers) -> list[str]:
    """What the user is to be told of single rows."""
    found = [
        f"{task.path}: {task.unit} {question.row}: {judged.warning}"
        for side in answers.values()
        for question, judged in zip(task.questions, side, strict=True)
        if judged.warning
    ]
    return list(dict.fromkeys(found))


def verdicts(judged: Sequence[Judged], measure: str) -> list[bool]:
    """Which questions were answered rightly."""
    return [one.right[measure] for one in judged]


def _loss(loss: float) -> dict[str, Any]:
    return {"loss": loss, "perplexity": perplexity(loss)}


def _apart(answers: Answers, measure: str) -> Difference:
    first, second = answers.values()
    return difference_of(verdicts(first, measure), verdicts(second, measure))


def _row(judged: Judged) -> dict[str, Any]:
    return {"answer": judged.answer, **judged.right, **judged.details}


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high, "right": share.right}


def _difference(apart: Difference) -> dict[str, Any]:
    low, high = apart.interval
    return {
        "value": apart.value,
        "low": low,
        "high": high,
        "p_value": apart.p_value,
        "gained": apart.second_alone,
        "lost": apart.first_alone,
    }
