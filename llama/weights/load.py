"""Weights into a model: each rank reads the slices that it keeps, one tensor at a time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from llama.base.dense import Dense
from llama.base.frozen import FrozenWeight
from llama.errors import raise_if
from llama.parallel.layers import ParallelLinear
from llama.weights.reader import WeightReader

_ADAPTER = ".lora."
_MARKS = ("shard_dim", "model_parallel")


class Placement(Protocol):
    """Where a parameter goes once it is there."""

    reads: bool
    """Whether this rank reads the weights; if not, `place` brings it their values."""

    def place(self, parameter: nn.Parameter) -> None: ...


class KeepWhole:
    """Every rank reads its parameters and keeps them."""

    reads = True

    def place(self, parameter: nn.Parameter) -> None: ...


def load_weights(
    model: nn.Module,
    reader: WeightReader,
    dtype: torch.dtype,
    device: torch.device,
    shard_rank: int,
    shard_count: int,
    placement: Placement | None = None,
    kind: type[FrozenWeight] = Dense,
) -> None:
    """Replace every parameter of `model`, built on the meta device, by the weights of `reader`.

    A parameter whose `shard_dim` is set gets share `shard_rank` of `shard_count` along that
    dimension, the others the whole tensor. Parameters of adapters stay as they are; one that goes
    by two names stays one object. Linear layers hold theirs as `kind` does. The host holds one
    tensor beyond what it keeps.

    UserError, once all are read, with each weight that is NaN or infinite, in the file or as
    `dtype`; RuntimeError for a parameter the reader has nothing for, or whose shape differs."""
    there, problems = reader.names(), []
    placement = placement or KeepWhole()
    for names in _names_by_parameter(model):
        name = next((name for name in names if name in there), None)
        if name is None:
            raise RuntimeError(f"no weights for the parameter {names[0]}")
        old = model.get_parameter(name)
        how = _way_to_hold(model, name, kind)
        new = how.empty(old.shape, dtype, device)
        if placement.reads:
            stored = _read_share(reader, name, old, shard_rank, shard_count)
            how(new).fill(stored)
            if not _is_finite(how(new).dense()):
                problems.append(f"{reader.place(name)}: {_not_finite(name, stored, dtype)}")
        new.requires_grad_(old.requires_grad)
        for mark in _MARKS:
            if hasattr(old, mark):
                setattr(new, mark, getattr(old, mark))
        for alias in names:
            owner, _, attribute = alias.rpartition(".")
            model.get_submodule(owner).register_parameter(attribute, new)
        placement.place(new)
    raise_if(problems)


def _way_to_hold(model: nn.Module, name: str, kind: type[FrozenWeight]) -> type[FrozenWeight]:
    """`kind` for the weight of a linear layer, which is told so; all else is dense: biases, norms,
    embedding and head."""
    owner, _, attribute = name.rpartition(".")
    layer = model.get_submodule(owner)
    if not isinstance(layer, ParallelLinear) or attribute != "weight":
        return Dense
    layer.kind = kind
    return kind


def _names_by_parameter(model: nn.Module) -> list[list[str]]:
    """The names of each parameter, adapters' left out: several where it is tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _ADAPTER not in name:
            names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _read_share(
    reader: WeightReader, name: str, parameter: nn.Parameter, rank: int, count: int
) -> torch.Tensor:
    dim = getattr(parameter, "shard_dim", None)
    if dim is None or count == 1:
        stored = reader.read(name)
    else:
        length = parameter.shape[dim]
        stored = reader.read(name, dim, rank * length, length)
    if stored.shape != parameter.shape:
        raise RuntimeError(
            f"{name}: the weights have shape {list(stored.shape)}, "
            f"the parameter {list(parameter.shape)}"
        )
    return stored


def _is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity both show in the extremes, which need no copy of the tensor."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _not_finite(name: str, stored: torch.Tensor, dtype: torch.dtype) -> str:
    if _is_finite(stored):
        largest = float(stored.abs().max())
        return f"{name}: a weight of {largest:g} is too large for {dtype}: use bf16"
    return f"{name}: the weights hold NaN or infinity: the file is damaged or its training diverged"
