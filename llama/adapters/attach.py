"""Choosing the layers that get an adapter, attaching it, and freezing all the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from llama.adapters.lora import LoRAAdapter
from llama.errors import raise_if
from llama.model.config import LINEARS
from llama.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    mark_shard,
    shard_dim,
)


def attach(
    model: nn.Module, rank: int, alpha: float, dropout: float, targets: tuple[str, ...]
) -> None:
    """Give every linear layer named in `targets` an adapter (on the meta device if the model is
    there), and freeze every parameter that is not an adapter's.

    Raises `UserError` for a target that matches no layer."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    matched = set()
    for name, module in list(model.named_modules()):
        target = name.rpartition(".")[2]
        if isinstance(module, ColumnParallelLinear | RowParallelLinear) and target in targets:
            matched.add(target)
            with torch.device(module.weight.device):
                module.lora = LoRAAdapter(module, rank, alpha, dropout)
    raise_if(
        [
            f"--lora.targets: {target!r} matches no layer of the model: {', '.join(LINEARS)} do"
            for target in targets
            if target not in matched
        ]
    )


def initialise(model: nn.Module, seed: int, device: torch.device) -> None:
    """Put the adapters on `device` with their first values, which depend on the seed and the
    layer's name alone: not on the order of layers, nor on how the model is sharded."""
    for name, adapter in adapters(model):
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if adapter.a.is_meta:
            _materialise(adapter, device)
        adapter.reset(generator)


def _materialise(adapter: LoRAAdapter, device: torch.device) -> None:
    """`to_empty` keeps the Parameter's attributes only if it keeps the object; it does not."""
    for name in ("a", "b"):
        old = getattr(adapter, name)
        new = nn.Parameter(torch.empty_like(old, device=device))
        mark_shard(new, shard_dim(old))
        setattr(adapter, name, new)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRAAdapter]]:
    """`(layer name, adapter)` of every adapter, e.g. `layers.0.attention.wq`."""
    for name, module in model.named_modules():
        if isinstance(module, LoRAAdapter):
            yield name.removesuffix(".lora"), module


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, of all that train."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
