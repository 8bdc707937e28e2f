"""The settings of `chat`, and every check of them that needs no model."""

from __future__ import annotations

from dataclasses import dataclass

from llama.settings.commands import AnswerOptions
from llama.settings.validate import check_answering, check_model


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnswerOptions):
    """Settings of `chat`."""

    compare: bool = False
    """Have each message answered twice, by the model alone and with its adapter; each of the two
    goes on from its own answers."""
    system: str | None = None
    """What the model is told before the conversation; none means what its template says."""
    max_new_tokens: int = 1024
    """End an answer after this many tokens, if it did not end itself; Ctrl-C ends it too."""


def check_chat(options: ChatOptions) -> list[str]:
    """Every problem of `chat`'s settings."""
    problems = [*check_model(options), *check_answering(options)]
    if options.compare and options.adapter is None:
        problems.append("--compare: lays the model beside its adapter; give --adapter")
    return problems
