"""What was said so far, and the prompt for what comes next. Knows of no terminal and no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama.assembly.limits import room_for_answer
from llama.errors import UserError
from llama.model.config import ModelConfig
from llama.tokenizer.base import Message, Template, Tokenizer

ANEW = "/reset begins anew"
"""What to do about a conversation that has become too long."""


@dataclass(frozen=True)
class Exchange:
    """A message and its answer."""

    message: str
    answer: str
    is_whole: bool
    """Whether the model ended the answer itself: else it was stopped, or ran out of tokens."""


class Conversation:
    """A conversation with one model, written by its template."""

    def __init__(
        self, template: Template, tokenizer: Tokenizer, config: ModelConfig, system: str | None
    ) -> None:
        self.system = system
        """What the model is told before it all; None is what the template says."""
        self.exchanges: list[Exchange] = []
        self._template = template
        self._tokenizer = tokenizer
        self._config = config

    def prompt(self, message: str) -> tuple[list[int], int]:
        """Ids up to the answer to `message`, and how many tokens the answer may have. Raises
        UserError where the template cannot write it, or the model has no room."""
        turns = [*self._turns(), Message(role="user", content=message)]
        ids = self._template.prompt(turns, self._tokenizer)
        room = room_for_answer(ids, self._config, self._tokenizer)
        if room <= 0:
            advice = ANEW if self.exchanges else "say less at once"
            raise UserError(
                f"the conversation has {len(ids):,} tokens with this message, and the model "
                f"{self._config.max_seq_len:,} positions (max_position_embeddings): {advice}"
            )
        return ids, room

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.exchanges.clear()

    def row(self) -> dict[str, Any]:
        """A row of training data. An answer that the model did not end is not to be learnt: it
        would learn to end there."""
        turns: list[dict[str, Any]] = [{**turn} for turn in self._turns()]
        answers = [turn for turn in turns if turn["role"] == "assistant"]
        for turn, exchange in zip(answers, self.exchanges, strict=True):
            if not exchange.is_whole:
                turn["train"] = False
        return {"messages": turns}

    def _turns(self) -> list[Message]:
        turns = [Message(role="system", content=self.system)] if self.system else []
        for exchange in self.exchanges:
            turns.append(Message(role="user", content=exchange.message))
            turns.append(Message(role="assistant", content=exchange.answer))
        return turns
