"""Keys and values of the tokens already seen, for generation."""

from __future__ import annotations

import torch

from llama.model.config import ModelConfig


class KVCache:
    """Room for `capacity` tokens of one sequence. Shapes: T tokens, K this rank's kv heads,
    E head_dim."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ) -> None:
        shape = (config.n_layers, capacity, kv_heads or config.n_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        """Tokens held, the same in every layer; moved on by `advance` once a forward is done."""

    def extend(
        self, layer: int, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of `layer` and return all keys and values up to them."""
        end = self.length + k_TKE.shape[0]
        assert end <= self.keys.shape[1], "the cache is full"
        self.keys[layer, self.length : end] = k_TKE
        self.values[layer, self.length : end] = v_TKE
        return self.keys[layer, :end], self.values[layer, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens
