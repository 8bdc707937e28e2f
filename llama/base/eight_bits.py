"""A frozen weight in eight bits, multiplied as it is: int8, or float8 e4m3.

`W = diag(s) Q` with a scale for each row, or `W = Q diag(s)` with one for each column. What a
product multiplies by `Q` is quantised too, a token at a time, by `q(v)`, of which the token's own
scales are a part (`llama/kernels/eight_bits.py`):

    rows:     x W^T = q(x) Q^T diag(s)        g W = q(g diag(s)) Q
    columns:  x W^T = q(x diag(s)) Q^T        g W = q(g) Q diag(s)

so that of the two scales the one along the sum is in the factor before it is quantised, and the
other leaves the sum.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from llama.base import packed
from llama.base.packed import Matrix, Packed
from llama.kernels import eight_bits
from llama.kernels.codes import quantised
from llama.kernels.eight_bits import Quantised, quantised_rows

ALIGNED = 16
"""Bytes: the scales begin at a multiple of them."""


class EightBits(Packed):
    """`FrozenWeight` of the codes, `[O, I]`, filled up to a multiple of 16, and of the scales in
    float32."""

    CODES: ClassVar[torch.dtype]
    BY_CUT: ClassVar[bool]
    """Whether the scales are those of the dimension that ranks share, else of the rows."""
    MADE_DENSE: ClassVar[bool] = False
    ROUNDS_INPUT: ClassVar[bool] = True
    ADDS: ClassVar[bool] = False
    CAPABILITY: ClassVar[tuple[int, int]]

    @classmethod
    def bytes_of(cls, matrix: Matrix) -> int:
        return _scales_begin(matrix.shape) + 4 * matrix.shape[cls._scaled(matrix)]

    @classmethod
    def _scaled(cls, matrix: Matrix) -> int:
        """The dimension whose every index has a scale: 0, rows, or 1, columns."""
        return matrix.cut if cls.BY_CUT else 0

    @torch.no_grad()
    def fill(self, stored: torch.Tensor) -> None:
        codes, scales = self._codes(), self._scales()
        if self._scaled(self.matrix) == 1:
            codes, stored = codes.t(), stored.t()
        rows = max(1, packed.AT_ONCE // stored.shape[1])
        for first in range(0, stored.shape[0], rows):
            some = slice(first, first + rows)
            values = stored[some].to(codes.device, torch.float32, copy=True)
            found, scale = quantised(values, self.CODES)
            codes[some] = found
            scales[some] = scale.squeeze(1)

    def taken(self, x_TI: torch.Tensor) -> Quantised | None:
        """`q(x)`, where no scale of the weight's is in it."""
        _, columns = self._by_side()
        return quantised_rows(x_TI, None, self.CODES) if columns is None else None

    def times(
        self,
        x_TI: torch.Tensor,
        taken: Quantised | None = None,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = self._by_side()
        if taken is None or columns is not None:
            factor: Quantised = quantised_rows(x_TI, columns, self.CODES)
        else:
            factor = taken
        return eight_bits.product(factor, self._codes(), rows, x_TI.dtype, into)

    def times_transposed(
        self,
        g_TO: torch.Tensor,
        onto: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = self._by_side()
        found = eight_bits.times(g_TO, self._codes().t(), rows, columns, into)
        return found if onto is None else onto.add_(found)

    def dense(self) -> torch.Tensor:
        scales = self._scales().unsqueeze(1 - self._scaled(self.matrix))
        return self._codes().float().mul_(scales).to(self.compute_dtype)

    def _by_side(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The scales, of the rows or of the columns."""
        scales = self._scales()
        return (scales, None) if self._scaled(self.matrix) == 0 else (None, scales)

    def _codes(self) -> torch.Tensor:
        """`[O, I]`"""
        held = self.parameter.detach()[: self.matrix.shape.numel()]
        return held.view(self.CODES).view(self.matrix.shape)

    def _scales(self) -> torch.Tensor:
        return self.parameter.detach()[_scales_begin(self.matrix.shape) :].view(torch.float32)


class Int8(EightBits):
    """Whole numbers from -127 to 127, evenly spaced: what is small beside the largest of its token
    is lost. A scale for each row, whatever the cut: with one for each column the inputs of `wo` and
    `w2`, multiplied by it, lost twice as much (of SmolLM2-135M's on real text). So of a layer that
    is cut by its columns each shard is another rounding."""

    CODES = torch.int8
    BY_CUT = False
    CAPABILITY: ClassVar[tuple[int, int]] = (8, 0)


class FP8(EightBits):
    """Floating point with 4 bits of exponent and 3 of mantissa, as exact of small numbers as of
    large ones: scales may be of either side. They are of the side that tensor-parallel ranks share,
    so that each is of numbers on one rank, and the codes are the same at any degree."""

    CODES = torch.float8_e4m3fn
    BY_CUT = True
    CAPABILITY: ClassVar[tuple[int, int]] = (8, 9)


def _scales_begin(shape: torch.Size) -> int:
    return -(-shape.numel() // ALIGNED) * ALIGNED
