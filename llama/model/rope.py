"""Rotary position embedding, with halves laid out as Hugging Face has them.

Su et al., "RoFormer", 2021, section 3.4.2. Shapes: T tokens, H heads, E head_dim.
"""

from __future__ import annotations

import torch

from llama.kernels.elementwise import rotate
from llama.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """`theta^(-2i/E)` for i < E/2, float32 `[E/2]`, stretched if the model asks for it."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")  # never on meta
    exponents = steps / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    return scaling.stretch(frequencies, config.rope_theta) if scaling else frequencies


def attention_factor(config: ModelConfig) -> float:
    """What the model's cosines and sines are multiplied by: 1 but for some scalings."""
    return config.rope_scaling.attention_factor if config.rope_scaling else 1.0


class Rotation:
    """Cosines and sines of one batch's positions, computed once and used by every layer."""

    def __init__(
        self,
        frequencies: torch.Tensor,
        positions: torch.Tensor,
        dtype: torch.dtype,
        factor: float = 1.0,
    ) -> None:
        """`frequencies` float32 `[E/2]`, `positions` `[T]`, on one device; angles are taken in
        float32. What is turned is multiplied by `factor` too."""
        angles_TE = torch.outer(positions.float(), frequencies).repeat(1, 2)
        self.cos_T1E = (angles_TE.cos() * factor).to(dtype).unsqueeze(1)
        sin_T1E = (angles_TE.sin() * factor).to(dtype).unsqueeze(1)
        # x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin: the first half takes the negative sine.
        half = sin_T1E.shape[-1] // 2
        self.signed_sin_T1E = torch.cat((-sin_T1E[..., :half], sin_T1E[..., half:]), dim=-1)
        self.angles = self.cos_T1E, self.signed_sin_T1E
        self.back = self.cos_T1E, -self.signed_sin_T1E  # gradients are turned back

    def __call__(self, x_THE: torch.Tensor) -> torch.Tensor:
        """Turn each head of `x_THE` by its position."""
        return rotate(x_THE, self.cos_T1E, self.signed_sin_T1E)
