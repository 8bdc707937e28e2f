"""Numbers held in eight bits: codes, and float32 scales that these are multiplied by.

Shapes: T rows, K numbers of each.
"""

from __future__ import annotations

import torch

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of each type of codes, the largest that is used."""
SMALLEST = torch.finfo(torch.float32).tiny
"""A scale is no smaller: rows of zeros have one too."""
GROUP = 128
"""Numbers of a token that share a scale in int8; in float8 all of them do."""
TILE = 16
"""CUDA's products take multiples of so many codes."""


def quantised(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `dtype` and scales `[T, 1]` of each row of `values`, `[T, K]` in float32, which is
    overwritten. The scale of a row that is not all finite is not finite."""
    amax_T1 = torch.linalg.vector_norm(values, float("inf"), dim=1, keepdim=True)
    # Tensors divide alike on every device: by a number, CUDA multiplies by its rounded inverse.
    scales_T1 = (amax_T1 / torch.full_like(amax_T1, LARGEST[dtype])).clamp_(min=SMALLEST)
    values.div_(scales_T1)
    return (values.round_() if dtype == torch.int8 else values).to(dtype), scales_T1
