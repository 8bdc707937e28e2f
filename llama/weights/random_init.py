"""Random weights of a given shape: for plans, benchmarks and tests that need no trained model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from llama.model.config import ModelConfig
from llama.weights.reader import slice_of
from llama.weights.shapes import expected_shapes

_STD = 0.02
_BLOCK_ELEMENTS = 1 << 22


class RandomReader:
    """Normal weights of standard deviation 0.02, norms of 1, biases of 0, in float32.

    A matrix is drawn in blocks of whole rows, each from its own seed made of `seed`, the name and
    the block. So a slice is the same slice of the same tensor whoever asks for it, and only the
    blocks it touches are drawn. CPU and CUDA draw different numbers from the same seed."""

    def __init__(
        self, config: ModelConfig, seed: int = 0, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.files: list[Path] = []
        self._seed = seed
        self._device = device or torch.device("cpu")
        self._shapes = expected_shapes(config)

    def names(self) -> set[str]:
        return set(self._shapes)

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        shape = self._shapes[name]
        axis, length = slice_of(shape, dim, start, length)
        if len(shape) == 1:
            value = 0.0 if name.endswith(".bias") else 1.0
            return torch.full((length,), value, device=self._device)
        if axis == 0:
            return self._rows(name, start, length, slice(None))
        return self._rows(name, 0, shape[0], slice(start, start + length))

    def _rows(self, name: str, start: int, length: int, columns: slice) -> torch.Tensor:
        rows, width = self._shapes[name]
        step = max(1, _BLOCK_ELEMENTS // width)
        kept = len(range(width)[columns])
        result = torch.empty(length, kept, device=self._device)
        for block in range(start // step, -(-(start + length) // step)):
            first = block * step
            drawn = self._draw(name, block, min(step, rows - first), width)
            begin, end = max(start, first), min(start + length, first + drawn.shape[0])
            result[begin - start : end - start] = drawn[begin - first : end - first, columns]
        return result

    def _draw(self, name: str, block: int, rows: int, width: int) -> torch.Tensor:
        digest = hashlib.sha256(f"{self._seed}:{name}:{block}".encode()).digest()
        generator = torch.Generator(device=self._device)
        generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.empty(rows, width, device=self._device)
        return drawn.normal_(0.0, _STD, generator=generator)

    def place(self, name: str) -> str:
        return "random weights"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"random {self._seed} {self.config}".encode()).hexdigest()

    def sampled_hash(self) -> str:
        """Seed and sizes say all of it; to draw even some rows of each tensor would take long."""
        return self.fingerprint()
