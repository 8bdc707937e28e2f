"""A ready model as a task asks it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llama.assembly.use import answers, summed_loss
from llama.data.batches import make_batch
from llama.data.types import IGNORE, Example
from llama.model.decoding import Agreed
from llama.model.transformer import Transformer
from llama.tokenizer.base import Message, Template, Tokenizer


class Writer:
    """Questions and answers as ids, by one template and tokenizer."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._template = template

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to the answer. Raises UserError where the template cannot write `messages`."""
        return self._template.prompt(messages, self.tokenizer)

    def answered(self, messages: Sequence[Message], answer: str) -> Example:
        """The conversation with `answer` as its last turn, as a run would learn it, but for the
        tokens that end the turn: those are not labelled, and so not part of a likelihood."""
        whole = [*messages, Message(role="assistant", content=answer)]
        ids, labels = self._template.render(whole, self.tokenizer)
        ends = self.tokenizer.stop_ids
        said = [at for at, label in enumerate(labels) if label != IGNORE and label not in ends]
        end = said[-1] + 1
        return Example(ids[:end], labels[:end], 0)


class ModelRespondent:
    """A model, with `batch` of its answers written together. Every rank that has a part of it asks
    the same; `agreed` has all take the same tokens."""

    def __init__(
        self,
        model: Transformer,
        writer: Writer,
        device: torch.device,
        max_new_tokens: int,
        batch: int,
        agreed: Agreed,
    ) -> None:
        self._model = model
        self._writer = writer
        self._device = device
        self._max_new_tokens = max_new_tokens
        self._batch = batch
        self._agreed = agreed

    def answers(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        ids = [self._writer.prompt(messages) for messages in prompts]
        tokenizer, most = self._writer.tokenizer, self._max_new_tokens
        return answers(self._model, tokenizer, ids, most, self._agreed, self._batch)

    def log_likelihoods(self, prompt: Sequence[Message], answers: Sequence[str]) -> list[float]:
        examples = [self._writer.answered(prompt, answer) for answer in answers]
        batches = [make_batch([[example]], 0) for example in examples]
        return [-summed_loss(self._model, [batch], self._device)[0] for batch in batches]
