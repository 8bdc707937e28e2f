"""A model's weights with an adapter merged into them, read like any others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from llama.adapters.adapter import Adapter
from llama.adapters.attach import adapters, attach_each, set_values
from llama.model.config import ModelConfig
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear
from llama.parallel.mesh import SINGLE
from llama.settings import LoRAOptions
from llama.weights.reader import WeightReader, sampled_hash, slice_of
from llama.weights.shapes import expected_shapes

_BY_COLUMNS = ("wo", "w2")
"""Layers that are cut along their inputs."""


class Merged:
    """The weights of `base`, and on the layers that an adapter has, what it makes of them: summed
    in float32, and not rounded. In memory are one tensor and its factors.

    What is added is asked of the kind of adapter (`Adapter.delta`)."""

    def __init__(
        self,
        base: WeightReader,
        layers: Mapping[str, LoRAOptions],
        state: Mapping[str, torch.Tensor],
    ) -> None:
        """`layers` and `state` are what `llama.assembly.model.read_adapter` finds."""
        self.config: ModelConfig = base.config
        self.files: list[Path] = base.files
        self._base = base
        self._layers = layers
        self._state = state

    def names(self) -> set[str]:
        return self._base.names()

    def place(self, name: str) -> str:
        return self._base.place(name)

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self._layers:
            return self._base.read(name, dim, start, length)
        weight = self._base.read(name).float()
        with torch.no_grad():
            alone = adapter_alone(layer, weight, self._layers[layer], self._state)
            merged = weight + alone.delta(weight)
        axis, length = slice_of(tuple(merged.shape), dim, start, length)
        return merged.narrow(axis, start, length)

    def fingerprint(self) -> str:
        whole = hashlib.sha256(self._base.fingerprint().encode())
        for name, tensor in sorted(self._state.items()):
            whole.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def sampled_hash(self) -> str:
        return sampled_hash(self, expected_shapes(self.config))


def adapter_alone(
    layer: str, weight: torch.Tensor, options: LoRAOptions, state: Mapping[str, torch.Tensor]
) -> Adapter:
    """The adapter of the native `layer`, with its values out of `state`, on a layer without a model
    that has `weight`, float32."""
    target = layer.rpartition(".")[2]
    rows, columns = weight.shape
    cls = RowParallelLinear if target in _BY_COLUMNS else ColumnParallelLinear
    with torch.device("meta"):
        linear = cls(columns, rows, False, SINGLE)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    holder = nn.ModuleDict({target: linear})
    attach_each(holder, {target: options})
    prefix = f"{layer}.lora."
    values = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    set_values(holder, {f"{target}.lora.{name}": tensor for name, tensor in values.items()})
    ((_, adapter),) = adapters(holder)
    return adapter
