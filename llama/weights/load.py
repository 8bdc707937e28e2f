"""Weights into a model: each rank reads the slices that it keeps, one tensor at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from llama.base.dense import Dense
from llama.base.frozen import FrozenWeight
from llama.errors import raise_if
from llama.parallel.layers import ParallelLinear, shard_dim
from llama.weights.reader import WeightReader

_ADAPTER = ".lora."
_MARKS = ("shard_dim", "model_parallel", "real_size")


class Placement:
    """Where a parameter goes once it is there: every rank reads its parameters and keeps them."""

    reads = True
    """Whether this rank reads the weights; if not, `place` brings it their values."""

    def expect(self, name: str, like: torch.Tensor) -> None:
        """`name` is to come, as `like`, which has no memory. Told of all before the first comes."""

    def rows(self, name: str, count: int, by_rows: bool) -> tuple[int, int]:
        """Of the `count` rows of this parameter, its first dimension, those that this rank reads:
        the first and how many. `by_rows`: its bytes are those of its rows, one after the other."""
        return 0, count

    def place(self, name: str, parameter: nn.Parameter, part: nn.Parameter) -> None:
        """`parameter` is in the model by now. `part` has the rows that were asked for, and is
        `parameter` itself where those are all."""


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
    dimension, the others the whole tensor. Where the shares of `real_size` rows are rounded up, the
    rows past the last are zero. Parameters of adapters stay as they are; one that goes by two names
    stays one object. Linear layers hold theirs as `kind` does. The host holds one tensor beyond
    what it keeps.

    UserError, once all are read, with each weight that is NaN or infinite, in the file or as
    `dtype`; RuntimeError for a parameter the reader has nothing for, or whose shape differs."""
    there, problems = reader.names(), []
    placement = placement or Placement()
    parameters = {_stored_name(names, there): names for names in _names_by_parameter(model)}
    for name in parameters:
        how = _way_to_hold(model, name, kind)
        old = model.get_parameter(name)
        placement.expect(name, how.empty(old.shape, dtype, torch.device("meta"), _cut(old)))
    for name, names in parameters.items():
        old, how = model.get_parameter(name), _way_to_hold(model, name, kind)
        part = new = how.empty(old.shape, dtype, device, _cut(old))
        first, count = placement.rows(name, old.shape[0], how.BY_ROWS)
        if count < old.shape[0]:
            part = how.empty(torch.Size([count, *old.shape[1:]]), dtype, device, _cut(old))
        if placement.reads and count:
            stored = _read_share(reader, name, old, shard_rank, shard_count, first, count)
            how(part).fill(stored)
            if not is_finite(how(part).dense()):
                problems.append(f"{reader.place(name)}: {not_finite(name, stored, dtype)}")
        new.requires_grad_(old.requires_grad)
        for mark in _MARKS:
            if hasattr(old, mark):
                setattr(new, mark, getattr(old, mark))
        for alias in names:
            owner, _, attribute = alias.rpartition(".")
            model.get_submodule(owner).register_parameter(attribute, new)
        placement.place(name, new, part)
    raise_if(problems)


def _stored_name(names: list[str], there: set[str]) -> str:
    """The one of a parameter's names by which the reader has it."""
    name = next((name for name in names if name in there), None)
    if name is None:
        raise RuntimeError(f"no weights for the parameter {names[0]}")
    return name


def _way_to_hold(model: nn.Module, name: str, kind: type[FrozenWeight]) -> type[FrozenWeight]:
    """`kind` for the weight of a linear layer, which is told so; all else is dense: biases, norms,
    embedding and head."""
    owner, _, attribute = name.rpartition(".")
    layer = model.get_submodule(owner)
    if not isinstance(layer, ParallelLinear) or attribute != "weight":
        return Dense
    layer.kind = kind
    return kind


def _cut(parameter: nn.Parameter) -> int:
    """The dimension along which ranks share it; of what each has whole, the first."""
    return shard_dim(parameter) or 0


def _names_by_parameter(model: nn.Module) -> list[list[str]]:
    """The names of each parameter, adapters' left out: several where it is tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _ADAPTER not in name:
            names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _read_share(
    reader: WeightReader,
    name: str,
    parameter: nn.Parameter,
    rank: int,
    count: int,
    first: int,
    rows: int,
) -> torch.Tensor:
    """`rows` rows from `first` on of the share that `rank` of `count` has of `parameter`."""
    dim, size = shard_dim(parameter), parameter.shape[0]
    is_all = rows == size
    if dim is None or count == 1:
        stored = reader.read(name) if is_all else reader.read(name, 0, first, rows)
    elif dim == 0:
        stored = _read_rows(reader, name, parameter, rank * size + first, rows, count)
    else:
        length = parameter.shape[dim]
        if rows * count < size:  # a reader cuts along one dimension: along the one that cuts more
            stored = reader.read(name, 0, first, rows).narrow(dim, rank * length, length)
        else:
            stored = reader.read(name, dim, rank * length, length).narrow(0, first, rows)
    expected = [rows, *parameter.shape[1:]]
    if list(stored.shape) != expected:
        raise RuntimeError(
            f"{name}: the weights have shape {list(stored.shape)}, the parameter {expected}"
        )
    return stored


def _read_rows(
    reader: WeightReader, name: str, parameter: nn.Parameter, start: int, rows: int, count: int
) -> torch.Tensor:
    """`rows` rows from row `start` of the whole on, zeros past its last one."""
    real = getattr(parameter, "real_size", count * parameter.shape[0])
    start = min(start, real)
    held = min(rows, real - start)
    if held == 0:
        return torch.zeros(rows, *parameter.shape[1:])
    stored = reader.read(name, 0, start, held)
    return F.pad(stored, (0, 0, 0, rows - held)) if held < rows else stored


def is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity both show in the extremes, which need no copy of the tensor."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def not_finite(name: str, stored: torch.Tensor, dtype: torch.dtype) -> str:
    """What is wrong with the weights `stored`, which are not finite, or not as `dtype`."""
    if is_finite(stored):
        largest = float(stored.abs().max())
        return f"{name}: a weight of {largest:g} is too large for {dtype}: use bf16"
    return f"{name}: the weights hold NaN or infinity: the file is damaged or its training diverged"
