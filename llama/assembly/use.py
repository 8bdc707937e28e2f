"""A ready model in use: its loss on examples, its answers to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from llama.data.types import Batch
from llama.model.decoding import Agreed, Sampling, decode_together, own
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


def answers(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    agreed: Agreed = own,
) -> list[str]:
    """The likeliest text after each of `prompts`, all decoded together; `agreed` as `decode` takes
    it."""
    was_training = model.training
    model.eval()
    stop = tokenizer.stop_ids
    batch = len(prompts)
    texts = [""] * batch
    for done in decode_together(model, prompts, max_new_tokens, stop, Sampling(), batch, agreed):
        texts[done.index] = tokenizer.decode(done.tokens)
    model.train(was_training)
    return texts
