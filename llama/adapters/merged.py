"""A model's weights with an adapter merged into them, read like any others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from llama.adapters.adapter import Adapter
from llama.adapters.attach import adapters, attach_each, set_values
from llama.adapters.kinds import kind_of
from llama.model.config import ModelConfig
from llama.parallel.layers import ColumnParallelLinear
from llama.parallel.mesh import SINGLE
from llama.settings import LoRAOptions
from llama.weights.reader import WeightReader, sampled_hash, slice_of
from llama.weights.shapes import expected_shapes


class Merged:
    """The weights of `base`, and on the layers that an adapter has, what it makes of them: summed
    in float32, and not rounded. In memory are the rows that are read, twice, and their factors.

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
        if dim not in (None, 0):
            axis, length = slice_of(expected_shapes(self.config)[name], dim, start, length)
            return self.read(name).narrow(axis, start, length)
        rows = self._base.read(name, dim, start, length).float()
        with torch.no_grad():
            alone = adapter_alone(layer, rows, self._layers[layer], self._state, start)
            return alone.delta(rows).add_(rows)

    def fingerprint(self) -> str:
        whole = hashlib.sha256(self._base.fingerprint().encode())
        for name, tensor in sorted(self._state.items()):
            whole.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def sampled_hash(self) -> str:
        return sampled_hash(self, expected_shapes(self.config))


def adapter_alone(
    layer: str,
    weight: torch.Tensor,
    options: LoRAOptions,
    state: Mapping[str, torch.Tensor],
    first: int = 0,
) -> Adapter:
    """The adapter of the native `layer`, with its values out of `state`, on a layer without a model
    that has `weight`, float32: all of it, or its rows from the one numbered `first` on. They are a
    shard of a layer that is cut by its outputs, whichever way the model cuts this one."""
    target, kind = layer.rpartition(".")[2], kind_of(options)
    rows, columns = weight.shape
    with torch.device("meta"):
        linear = ColumnParallelLinear(columns, rows, False, SINGLE)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    holder = nn.ModuleDict({target: linear})
    attach_each(holder, {target: options})
    ((_, adapter),) = adapters(holder)
    values = {}
    for name, _ in adapter.named_parameters():
        whole = state[f"{layer}.lora.{name}"]
        dim = kind.CUT[kind.FIXED.get(name, name)].column
        values[f"{target}.lora.{name}"] = whole if dim is None else whole.narrow(dim, first, rows)
    set_values(holder, values)
    return adapter
