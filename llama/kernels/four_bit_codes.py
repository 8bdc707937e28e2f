"""Weights held in four bits: NF4 with double quantisation.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3. Of each block of
64 weights the largest magnitude, their absmax, is kept, and of each weight which of 16 values it is
nearest to after division by that. The absmax, less their mean, are themselves kept in eight bits,
which say which of 256 levels of a scale that 256 of them share.
"""

from __future__ import annotations

import torch

from llama.kernels.paths import made_once

BLOCK = 64
"""Weights that share an absmax."""
GROUP = 256
"""Absmax that share a scale."""
LEVELS = 256
"""Values that an absmax may take, of its scale."""
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""That a weight may take, of its absmax: quantiles of a normal distribution (appendix E there)."""


@made_once
def values_on(device: torch.device) -> torch.Tensor:
    """`VALUES` in float32. A CUDA graph cannot make them; the launched passes that come before each
    model's first graph do."""
    return torch.tensor(VALUES, device=device)
