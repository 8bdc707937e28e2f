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
    return {
        "tokens_T": _to(batch.tokens, device),
        "positions_T": _to(batch.positions, device),
        "documents": Documents(batch.boundaries),
        "labels": Supervision(_to(index, device), _to(batch.targets[index], device)),
    }


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
