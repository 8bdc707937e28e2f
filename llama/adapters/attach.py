"""Choosing the layers that get an adapter, attaching it, and freezing all the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from llama.adapters.adapter import Adapter
from llama.adapters.kinds import kind_of
from llama.errors import raise_if
from llama.model.config import LINEARS
from llama.parallel.layers import ParallelLinear, share_of
from llama.settings import LoRAOptions

LR_RATIO = "lr_ratio"
Gathered = Callable[[nn.Parameter], AbstractContextManager[Any]]
"""Within it, a parameter is all there on each rank of its data-parallel group."""


def attach(model: nn.Module, options: LoRAOptions) -> None:
    """Give every linear layer named in `options.targets` an adapter (on the meta device if the
    model is there), and freeze every parameter that is not an adapter's.

    Raises `UserError` for a target that matches no layer."""
    chosen = {
        name: options
        for name, module in model.named_modules()
        if isinstance(module, ParallelLinear) and name.rpartition(".")[2] in options.targets
    }
    attach_each(model, chosen)
    matched = {name.rpartition(".")[2] for name in chosen}
    raise_if(
        [
            f"--lora.targets: {target!r} matches no layer of the model: {', '.join(LINEARS)} do"
            for target in options.targets
            if target not in matched
        ]
    )


def attach_each(model: nn.Module, chosen: Mapping[str, LoRAOptions]) -> None:
    """The same for the layers `chosen` by name, as `layers.0.attention.wq`, each by its own
    options."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, options in chosen.items():
        module = model.get_submodule(name)
        assert isinstance(module, ParallelLinear), name
        with torch.device(module.get_parameter("weight").device):
            module.lora = kind_of(options)(module, options)


def initialise(
    model: nn.Module, seed: int, device: torch.device, gathered: Gathered = nullcontext
) -> None:
    """Put the adapters on `device` with their first values, which depend on the seed, the layer's
    name and its weight alone: not on the order of layers, nor on how the model is sharded. Within
    `gathered` a weight is whole that is else cut up over ranks. Every rank must call it."""
    for name, adapter in adapters(model):
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if any(parameter.is_meta for parameter in adapter.parameters()):
            adapter.materialise(device)
        layer = model.get_submodule(name)
        assert isinstance(layer, ParallelLinear)
        adapter.reset(generator, partial(_weight, layer, gathered))


def _weight(layer: ParallelLinear, gathered: Gathered) -> torch.Tensor:
    weight = layer.get_parameter("weight")
    with gathered(weight):
        return layer.kind(weight).dense().detach().to(torch.float32, copy=True)


@torch.no_grad()
def set_values(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put into every adapter its share of the whole tensors `state`, by native name, which holds
    those of each, fixed ones too; they are rounded to the adapter's own type."""
    for layer, adapter in adapters(model):
        for name, tensor in adapter.named_parameters():
            tensor.copy_(share_of(state[f"{layer}.lora.{name}"], tensor, adapter.tp))


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """`(layer name, adapter)` of every adapter, e.g. `layers.0.attention.wq`."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name.removesuffix(".lora"), module


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what its base does, to the last digit."""
    scales = [(adapter, adapter.scale) for _, adapter in adapters(model)]
    try:
        for adapter, _ in scales:
            adapter.scale = 0.0
        yield
    finally:
        for adapter, scale in scales:
            adapter.scale = scale


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, of all that train."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def fixed_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, of all that adapters keep and do not train."""
    return {
        f"{layer}.lora.{name}": adapter.get_parameter(name)
        for layer, adapter in adapters(model)
        for name in adapter.FIXED
    }


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """All that trains, in groups of one learning rate, the first at the optimizer's own: of each
    its `params`, and as `LR_RATIO` by what that rate is multiplied. A checkpoint keeps what the
    schedule has set for each group, in this order."""
    ratios = {
        id(tensor): adapter.options.b_lr_ratio
        for _, adapter in adapters(model)
        for name, tensor in adapter.tensors()
        if name in adapter.RAISED
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trainable_parameters(model).values():
        groups.setdefault(ratios.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": params, LR_RATIO: ratio} for ratio, params in groups.items()]
