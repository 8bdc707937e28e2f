"""A batch as the model takes it, on its device."""

from __future__ import annotations

from typing import Any

import torch

from llama.data.types import IGNORE, Batch
from llama.model.documents import Documents
from llama.model.transformer import Supervision


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The arguments of `Transformer.forward`. Which positions are supervised is found before the
    copy, so that the device never has to be waited for."""
    index = (batch.targets != IGNORE).nonzero().squeeze(1)
    numbers = batch.tokens, batch.positions, index, batch.targets[index]
    if device.type == "cuda":  # each copy takes as long to start as all of them to make
        sizes = [len(part) for part in numbers]
        numbers = torch.cat(numbers).pin_memory().to(device, non_blocking=True).split(sizes)
    tokens, positions, index, labels = numbers
    return {
        "tokens_T": tokens,
        "positions_T": positions,
        "documents": Documents(batch.boundaries),
        "labels": Supervision(index, labels),
    }
