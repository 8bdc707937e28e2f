"""A frozen weight held as it is, each element in floating point."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from llama.kernels import products


class Dense:
    """`FrozenWeight` of one plain parameter `[O, I]`."""

    BY_ROWS: ClassVar[bool] = True
    MADE_DENSE: ClassVar[bool] = False
    ROUNDS_INPUT: ClassVar[bool] = False
    ADDS: ClassVar[bool] = True
    CAPABILITY: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, cut: int = 0
    ) -> nn.Parameter:
        """In `dtype` itself."""
        return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

    @torch.no_grad()
    def fill(self, stored: torch.Tensor) -> None:
        self.parameter.copy_(stored)

    @property
    def compute_dtype(self) -> torch.dtype:
        return products.compute_dtype(self.parameter)

    @property
    def nbytes(self) -> int:
        return getattr(self.parameter, "ds_tensor", self.parameter).nbytes  # ZeRO-3: the share

    def taken(self, x_TI: torch.Tensor) -> None:
        return None

    def times(
        self, x_TI: torch.Tensor, taken: None = None, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        return products.times(x_TI, self.parameter, into)

    def times_transposed(
        self,
        g_TO: torch.Tensor,
        onto: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return products.times_transposed(g_TO, self.parameter, onto, into)

    def dense(self) -> torch.Tensor:
        return self.parameter
