"""One side of a conversation: a model that answers, and what it and the user have said."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from llama.assembly.use import As
from llama.commands.chat.conversation import ANEW, Conversation, Exchange
from llama.model.decoding import Sampling, Session
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.growing import Counted, whole_characters

Pieces = Generator[str, None, None]


class Speaker:
    """`name` is what the user is shown; `as_self` is entered around each of its tokens, so that two
    sides may share one model and take turns."""

    def __init__(
        self,
        name: str,
        session: Session,
        tokenizer: Tokenizer,
        conversation: Conversation,
        as_self: As,
    ) -> None:
        self.name = name
        self.conversation = conversation
        self.cut_by: str | None = None
        """What ended the last answer in the place of the model; None where nothing did."""
        self._session = session
        self._tokenizer = tokenizer
        self._as_self = as_self

    def answer(self, message: str, max_new_tokens: int, sampling: Sampling) -> Pieces:
        """The answer to `message`, piece by piece, each of whole characters. However the iterator
        is left, what it gave is then part of the conversation, and nothing else is. Raises
        UserError at once where `message` cannot be answered."""
        self.cut_by = None
        prompt, room = self.conversation.prompt(message)
        # Else the same message would have the same answer throughout a conversation.
        sampling = replace(sampling, seed=sampling.seed + len(self.conversation.exchanges))
        most = min(room, max_new_tokens)
        limit = f"cut off at --max_new_tokens {most}"
        if room <= max_new_tokens:
            limit = f"cut off: the model's positions are full; {ANEW}"
        return self._pieces(message, self._tokens(prompt, most, sampling), most, limit)

    def _pieces(self, message: str, tokens: Iterator[int], most: int, limit: str) -> Pieces:
        said: list[str] = []
        is_whole = False
        self.cut_by = "stopped"
        counted = Counted(tokens)
        try:
            for piece in whole_characters(counted, self._tokenizer):
                said.append(piece)
                yield piece
            is_whole = counted.number < most
            self.cut_by = None if is_whole else limit
        finally:
            text = "".join(said)
            if text or is_whole:
                self.conversation.exchanges.append(Exchange(message, text, is_whole))

    def _tokens(self, prompt: list[int], most: int, sampling: Sampling) -> Iterator[int]:
        """Where a conversation meets the decoder: nothing else here knows how tokens are made."""
        tokens = self._session.answer(prompt, most, self._tokenizer.stop_ids, sampling)
        while True:
            with self._as_self():
                token = next(tokens, None)
            if token is None:
                return
            yield token
