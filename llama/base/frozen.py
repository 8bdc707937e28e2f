"""A linear layer's weight that is never trained, whatever form it is held in.

What a layer registers is one parameter; a kind of this folder wraps that parameter and knows how to
multiply by it. Kinds are listed in `kinds.py`.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn


class FrozenWeight(Protocol):
    """One way to hold a matrix `W[O, I]`."""

    MADE_DENSE: ClassVar[bool]
    """Whether each product first makes the dense matrix, which it then lets go."""

    ROUNDS_INPUT: ClassVar[bool]
    """Whether a product rounds what it is given too, by some percent: else it is that with `dense`,
    but for the order of sums."""

    ADDS: ClassVar[bool]
    """Whether a product adds itself to what is there; else that is another pass over both."""

    CAPABILITY: ClassVar[tuple[int, int]]
    """CUDA's compute capability from which on there are such products."""

    parameter: nn.Parameter
    """What the layer registers, ZeRO-3 partitions and checkpoints of the base would hold."""

    BY_ROWS: ClassVar[bool]
    """Whether the bytes of some rows are a part of those of all: a rank that keeps a part of the
    bytes then reads no other rows."""

    def __init__(self, parameter: nn.Parameter) -> None: ...

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, cut: int = 0
    ) -> nn.Parameter:
        """Room on `device` for a matrix of `shape = [O, I]`, this rank's slice of it, that is to be
        computed with in `dtype`. Along dimension `cut` tensor-parallel ranks share the whole."""
        ...

    def fill(self, stored: torch.Tensor) -> None:
        """Put in `stored`, the slice as the file has it. Where that is not all finite, or too large
        for the type to be computed with, `dense` is not finite either."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the activations that it multiplies."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that this rank holds."""
        ...

    def taken(self, x_TI: torch.Tensor) -> Any:
        """What `times` makes of `x` ahead of its product, where weights of this kind that read one
        input all make the same of it; else None."""
        ...

    def times(
        self, x_TI: torch.Tensor, taken: Any = None, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`x W^T`, `[T, O]`, in the type of `x`, which takes the place of `into` where that is
        given; `taken` may be what another weight's `taken` gave."""
        ...

    def times_transposed(
        self,
        g_TO: torch.Tensor,
        onto: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`g W`, `[T, I]`, in the type of `g`; added to `onto`, in place, where that is given, or
        in the place of `into`."""
        ...

    def dense(self) -> torch.Tensor:
        """`W`, `[O, I]`, in a floating-point type."""
        ...


def times_each(x_TI: torch.Tensor, weights: Sequence[FrozenWeight]) -> tuple[torch.Tensor, ...]:
    """`x W^T` of weights of one kind that read one input."""
    taken = weights[0].taken(x_TI)
    return tuple(weight.times(x_TI, taken) for weight in weights)


def frozen_product(x_TI: torch.Tensor, weight: FrozenWeight) -> torch.Tensor:
    """`x W^T`, `[T, O]`, keeping nothing of `x` for the backward pass: W has no gradient, and the
    gradient of `x` needs W alone."""
    if not torch.is_grad_enabled():
        return weight.times(x_TI)  # a token's worth of product is shorter than autograd's own work
    return _FrozenProduct.apply(x_TI, weight)  # type: ignore[return-value]


class _FrozenProduct(torch.autograd.Function):
    """The weight is put on the context as an object and not saved as a tensor, for two reasons. A
    block that is recomputed stops as soon as all saved tensors are there again, and so leaves out
    its last product, which the backward pass does not read. And under ZeRO-3 the parameter is empty
    between its uses: the object finds it filled again when the backward pass comes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FrozenWeight) -> torch.Tensor:
        ctx.weight = weight
        return weight.times(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return ctx.weight.times_transposed(grad_outputs[0]), None
