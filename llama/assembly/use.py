"""A ready model in use: its loss on examples, its answer to a prompt."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from llama.data.types import Batch
from llama.model.decoding import Agreed, Sampling, decode, own
from llama.model.transformer import Transformer
from llama.objectives.kinds import SFT
from llama.tokenizer.base import Tokenizer


@torch.no_grad()
def summed_loss(
    model: torch.nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[float, int]:
    """The loss summed over the supervised tokens of `batches`, and their number; no dropout."""
    was_training = model.training
    model.eval()
    total, supervised = 0.0, 0
    for batch in batches:
        total += float(SFT.loss(model, batch, device))
        supervised += SFT.count(batch)
    model.train(was_training)
    return total, supervised


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    agreed: Agreed = own,
) -> str:
    """The text that follows `prompt`; `agreed` as `decode` takes it."""
    was_training = model.training
    model.eval()
    stop = tokenizer.stop_ids
    tokens = list(decode(model, prompt, max_new_tokens, stop, sampling or Sampling(), agreed))
    model.train(was_training)
    return tokenizer.decode(tokens)
