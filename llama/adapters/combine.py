"""One adapter of several, each times a weight, in the ways of PEFT's `add_weighted_adapter`.

With the scale s, the weight w and the factors A and B of each adapter that a layer has:

    cat     A = [w s A; ...], B = [B, ...]: exactly the sum of w s B A, of all ranks together
    linear  A = sum of +-sqrt(|w s|) A, B = sum of sqrt(|w s|) B: of the same rank, but each A meets
            each B, so that it is near the sum only where the adapters are alike

The result has scale 1. Where a layer's ranks come to less than another's, rows and columns of zeros
fill them up, so that one rank is said of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llama.adapters.adapter import Tensors
from llama.adapters.lora import SCALES
from llama.model.config import LINEARS
from llama.settings import LoRAOptions


@dataclass(frozen=True)
class Part:
    """An adapter of the plain kind."""

    layers: Mapping[str, LoRAOptions]
    """Of each layer that it has, by native name."""
    state: Tensors
    weight: float

    def factors(self, layer: str) -> tuple[float, torch.Tensor, torch.Tensor]:
        """`w s`, `A[R, I]` and `B[O, R]`, float32."""
        options = self.layers[layer]
        a, b = (self.state[f"{layer}.lora.{name}"].float() for name in "ab")
        return self.weight * SCALES[options.scale](options.alpha, options.rank), a, b


def combined(parts: Sequence[Part], how: str) -> tuple[Tensors, LoRAOptions]:
    """The tensors of the sum, by native name, and what they are applied by. For `linear` all ranks
    are to be one."""
    join = {"cat": _side_by_side, "linear": _added}[how]
    layers = dict.fromkeys(layer for part in parts for layer in part.layers)
    found = {
        layer: join([part.factors(layer) for part in parts if layer in part.layers])
        for layer in layers
    }
    rank = max(len(a) for a, _ in found.values())
    state: Tensors = {}
    for layer, (a, b) in found.items():
        missing = rank - len(a)
        state[f"{layer}.lora.a"] = F.pad(a, (0, 0, 0, missing))
        state[f"{layer}.lora.b"] = F.pad(b, (0, missing))
    named = {layer.rpartition(".")[2] for layer in layers}
    targets = tuple(name for name in LINEARS if name in named)
    return state, LoRAOptions(rank, float(rank), 0.0, targets)


Factors = Sequence[tuple[float, torch.Tensor, torch.Tensor]]


def _side_by_side(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([ws * a for ws, a, _ in factors]), torch.cat([b for *_, b in factors], dim=1)


def _added(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    a = sum(math.copysign(math.sqrt(abs(ws)), ws) * a for ws, a, _ in factors)
    b = sum(math.sqrt(abs(ws)) * b for ws, _, b in factors)
    assert isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return a, b
