"""Whether ranks that should hold the same trained tensors do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llama.engine.state import Tensors
from llama.parallel.layers import shard_dim
from llama.parallel.mesh import Mesh


def differing(
    own_values: Tensors,
    trainable: Mapping[str, nn.Parameter],
    held: Mapping[str, nn.Parameter],
    mesh: Mesh,
) -> list[str]:
    """One line for each tensor of `trainable` that differs between ranks that should hold the same:
    copies over data-parallel ranks, and what tensor parallelism replicates. Compared by hash are
    the masters `own_values` and, of `held`, the parameters that the model computes with. Every rank
    must call it."""
    hashes = {name: _hash(value) for name, value in own_values.items()}
    for name, parameter in held.items():
        hashes[name] += _hash(parameter.detach().cpu())
    found: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(found, hashes)
    degree, problems = mesh.tensor_parallel.size, []
    for name, parameter in trainable.items():
        step = 1 if shard_dim(parameter) is None else degree
        for rank, other in enumerate(found):
            if other[name] != found[rank % step][name]:
                problems.append(f"{name} differs between ranks {rank % step} and {rank}")
                break
    return problems


def _hash(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
