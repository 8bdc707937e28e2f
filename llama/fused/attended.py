"""Attention with its own small autograd graph, for a block whose backward pass is written by hand.

Attention has several kernels, and each comes with its own backward pass, which saves what it likes.
The fused block leaves that to autograd, and decides only how long q, k and v are held.

Shapes: T tokens, H query heads, K kv heads, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from llama.model.attention import Attend, document_attention
from llama.model.documents import Documents
from llama.model.traded import Traded


class Attended:
    """Attention of one batch: run when made, gone back through by `backward`, once.

    Autograd would keep q, k and v alive for as long as the graph is. Here they are taken out of
    what it saves: in their stead it gets the number of the tensor with its size and strides, and
    asks for the tensor back only in the backward pass. With `keep_inputs` they are held until then;
    without, they are freed, and the caller computes them again and gives them to `fill`."""

    def __init__(
        self, qkv: tuple[torch.Tensor, ...], documents: Documents, keep_inputs: bool
    ) -> None:
        """`qkv`: `[T, H, E]`, `[T, K, E]`, `[T, K, E]`, without a graph of their own."""
        self._held = held = list(qkv) if keep_inputs else []
        memory = [_place(x) for x in qkv]

        def pack(x: torch.Tensor) -> Any:
            """What the graph is to save for `x`: a kernel saves views of q, k and v as well, told
            by the memory that they lie in; and its output, whose own graph would hold itself."""
            lies_in = _place(x)
            if lies_in in memory:
                return memory.index(lies_in), x.size(), x.stride()
            return x.detach()

        # It refers to the list and not to self: the graph hangs on self, and a circle of references
        # would hold the memory until Python's collector comes by.
        def unpack(packed: Any) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return packed
            number, size, stride = packed
            return held[number].as_strided(size, stride)

        with torch.enable_grad():
            inputs: Any = _Inputs.apply(torch.empty(0, requires_grad=True), *qkv)
            self._edges = [get_gradient_edge(x) for x in inputs]
            with saved_tensors_hooks(pack, unpack):
                q, k, v = inputs
                self._out = document_attention(q, k, v, documents)

    def out(self) -> torch.Tensor:
        """The attention's output, `[T, H E]`, without a graph."""
        return self._out.detach().flatten(1)

    @property
    def needs_inputs(self) -> bool:
        """Whether `fill` must be called before `backward`."""
        return not self._held

    def fill(self, qkv: tuple[torch.Tensor, ...]) -> None:
        """Give q, k and v anew, laid out as they were."""
        self._held.extend(qkv)

    def of_output(self, grad: torch.Tensor) -> torch.Tensor:
        """From the gradient of `out` what `backward` wants."""
        return grad

    def backward(self, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients to q, k and v, in their shapes; lets go of q, k and v."""
        grads = torch.autograd.grad(self._out, self._edges, grad.view_as(self._out))
        self._held.clear()
        return grads


class AttendedOverRanks(Attended):
    """The same of ranks that share the tokens of a micro-batch: all tokens of some heads are
    attended to here, and q, k and v, the output and the gradients are of some tokens. The output is
    kept once, by heads, as its backward pass wants it: to trade it again takes less time than to
    compute again what a second copy would have no room left for."""

    def __init__(
        self,
        traded: Traded,
        qkv: tuple[torch.Tensor, ...],
        documents: Documents,
        keep_inputs: bool,
    ) -> None:
        self._traded, self._documents, self._kv_heads = traded, documents, qkv[1].shape[1]
        super().__init__(traded.to_heads(qkv, documents), documents, keep_inputs)

    def out(self) -> torch.Tensor:
        """As of one rank; every rank must call it."""
        return self._traded.to_tokens(super().out(), self._documents)

    def fill(self, qkv: tuple[torch.Tensor, ...]) -> None:
        super().fill(self._traded.to_heads(qkv, self._documents))

    def of_output(self, grad: torch.Tensor) -> torch.Tensor:
        return self._traded.gradient_to_heads(grad, self._documents)

    def backward(self, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grads = super().backward(grad)
        return self._traded.gradients_to_tokens(grads, self._kv_heads, self._documents)


def attended(
    attend: Attend, qkv: tuple[torch.Tensor, ...], documents: Documents, keep_inputs: bool
) -> Attended:
    """What `attend`, an attention's, gives of q, k and v, to be gone back through."""
    if isinstance(attend, Traded):
        return AttendedOverRanks(attend, qkv, documents, keep_inputs)
    return Attended(qkv, documents, keep_inputs)


def _place(x: torch.Tensor) -> tuple[Any, ...]:
    """The memory that `x` lies in. Not by its address, which a tensor without data has not."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.numel()


class _Inputs(torch.autograd.Function):
    """Where the graph begins: gives q, k and v as tensors that need a gradient. Plain leaves would
    do so too, but the graph holds its leaves, and with them the memory; the outputs of a node it
    does not hold. The first argument is empty, and there only because autograd makes a node where
    an input needs a gradient."""

    @staticmethod
    def forward(ctx: Any, _: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.detach() for x in inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        raise AssertionError("gradients are taken at this node's outputs")
