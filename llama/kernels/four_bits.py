"""Weights in four bits, made dense.

Letters: B blocks of weights, G groups of blocks.
"""

from __future__ import annotations

import torch

from llama.kernels.compiled import kernel
from llama.kernels.four_bit_codes import BLOCK, GROUP


@kernel
def from_four_bits(
    codes: torch.Tensor,
    absmax_B: torch.Tensor,
    scales_G: torch.Tensor,
    mean: torch.Tensor,
    levels: torch.Tensor,
    values: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weights, `[B, BLOCK]` in `dtype`, of two `codes` a byte, the first in the upper half.
    `levels`, `[LEVELS]`, and `values`, `[16]`, are what the codes of absmax and of weights stand
    for. Each number is rounded after each product and sum, as bitsandbytes does."""
    scales_B = scales_G.repeat_interleave(GROUP)[: len(absmax_B)]
    wide_B = levels[absmax_B.long()].mul_(scales_B).add_(mean)
    pairs = torch.stack((codes >> 4, codes & 15), dim=1).view(len(absmax_B), BLOCK)
    return values[pairs.long()].mul_(wide_B.unsqueeze(1)).to(dtype)
