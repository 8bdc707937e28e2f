"""Attention that keeps its own graph, for a block whose backward pass is written by hand.

Shapes: T tokens, H query heads, K kv heads, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from llama.model.attention import document_attention
from llama.model.documents import Documents


class Attended:
    """Attention with a small graph of its own, so that any of its kernels serves. With
    `keep_inputs` False the graph holds places for q, k and v, to be filled before `backward`."""

    def __init__(
        self, qkv: tuple[torch.Tensor, ...], documents: Documents, keep_inputs: bool
    ) -> None:
        self._held = held = list(qkv) if keep_inputs else []
        places = [(x.data_ptr(), x.numel()) for x in qkv]

        def pack(x: torch.Tensor) -> Any:
            place = (x.data_ptr(), x.numel())
            return (places.index(place), x.size(), x.stride()) if place in places else x

        def unpack(packed: Any) -> torch.Tensor:  # holds the list and not self: no cycle
            if isinstance(packed, torch.Tensor):
                return packed
            place, size, stride = packed
            return held[place].as_strided(size, stride)

        with torch.enable_grad():
            inputs: Any = _Inputs.apply(torch.empty(0, requires_grad=True), *qkv)
            self._edges = [get_gradient_edge(x) for x in inputs]
            with saved_tensors_hooks(pack, unpack):
                q, k, v = inputs
                self._out = document_attention(q, k, v, documents)

    def out(self) -> torch.Tensor:
        """`[T, H E]`"""
        return self._out.detach().flatten(1)

    @property
    def needs_inputs(self) -> bool:
        return not self._held

    def fill(self, qkv: tuple[torch.Tensor, ...]) -> None:
        self._held.extend(qkv)

    def backward(self, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grads = torch.autograd.grad(self._out, self._edges, grad.view_as(self._out))
        self._held.clear()
        return grads


class _Inputs(torch.autograd.Function):
    """The start of a graph that holds none of its inputs, as leaves would be held."""

    @staticmethod
    def forward(ctx: Any, _: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.detach() for x in inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        raise AssertionError("gradients are taken at this node's outputs")
