"""A model's weights as a run holds them, read like any others."""

from __future__ import annotations

from pathlib import Path

import torch

from llama.base.frozen import FrozenWeight
from llama.model.config import LINEARS, ROW_PARALLEL, ModelConfig
from llama.weights.reader import WeightReader, slice_of


class AsHeld:
    """The weights of `base`, and those of the layers that a kind of `llama/base/` holds dense again
    after that: in float32, each of `shards` shares having been filled by itself. So a model that
    holds them dense computes what one that holds them as `kind` does, and is what that is compared
    with."""

    def __init__(
        self, base: WeightReader, kind: type[FrozenWeight], shards: int, device: torch.device
    ) -> None:
        self.config: ModelConfig = base.config
        self.files: list[Path] = base.files
        self._base, self._kind, self._shards, self._device = base, kind, shards, device

    def names(self) -> set[str]:
        return self._base.names()

    def place(self, name: str) -> str:
        return self._base.place(name)

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        layer, _, attribute = name.rpartition(".")
        target = layer.rpartition(".")[2]
        if target not in LINEARS or attribute != "weight":
            return self._base.read(name, dim, start, length)
        stored = self._base.read(name)
        cut = 1 if target in ROW_PARALLEL else 0
        shares = [self._held(share, cut) for share in stored.chunk(self._shards, dim=cut)]
        axis, length = slice_of(tuple(stored.shape), dim, start, length)
        return torch.cat(shares, dim=cut).narrow(axis, start, length)

    def _held(self, share: torch.Tensor, cut: int) -> torch.Tensor:
        weight = self._kind(self._kind.empty(share.shape, torch.float32, self._device, cut))
        weight.fill(share)
        return weight.dense()

    def fingerprint(self) -> str:
        return self._base.fingerprint()

    def sampled_hash(self) -> str:
        return self._base.sampled_hash()
