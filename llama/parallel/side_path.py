"""What may sit on a linear layer beside its frozen weight, as the layer sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LowRank:
    """A side path of the plain form `scale * B (A dropout(x))`."""

    a: torch.Tensor
    """`[R, I]`"""
    b: torch.Tensor
    """`[O, R]`"""
    scale: float
    dropout: float
    row: int = 0
    """Of the mask: where the tokens that it is given begin in the micro-batch."""


class SidePath(nn.Module):
    """A trained module beside a frozen weight: takes the layer's input and its output, gives the
    layer's output. Kinds: `llama/adapters`."""

    scale: float
    """What is added to the layer's output is times this; at 0 the layer is as without it."""

    def forward(self, x: torch.Tensor, base_output: torch.Tensor) -> torch.Tensor:
        """`x[T, I]` and `base_output[T, O]` to `[T, O]`, each this rank's share of it."""
        raise NotImplementedError

    def low_rank(self) -> LowRank | None:
        """This path as plain factors, for code that computes those by itself (the fused block);
        None where that would leave something out."""
        return None
