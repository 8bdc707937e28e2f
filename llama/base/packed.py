"""What the forms share that hold a frozen weight as one parameter of bytes, so that whatever moves,
sends or counts parameters has all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from llama.kernels import products

AT_ONCE = 2**22
"""Weights that are quantised at a time, of which that takes copies."""


@dataclass(frozen=True)
class Matrix:
    """What a parameter of bytes stands for."""

    shape: torch.Size
    dtype: torch.dtype
    """Of the run, in which it would be held if it were dense."""
    cut: int
    """The dimension along which tensor-parallel ranks share it."""


class Packed(ABC):
    """The part of `FrozenWeight` that does not ask what the bytes mean. The parameter's `matrix`
    says what it is."""

    BY_ROWS: ClassVar[bool] = False

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.matrix: Matrix = parameter.matrix  # type: ignore[attr-defined]

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, cut: int = 0
    ) -> nn.Parameter:
        matrix = Matrix(shape, dtype, cut)
        room = torch.zeros(cls.bytes_of(matrix), dtype=torch.uint8, device=device)
        parameter = nn.Parameter(room, requires_grad=False)
        parameter.matrix = matrix  # type: ignore[attr-defined]
        return parameter

    @classmethod
    @abstractmethod
    def bytes_of(cls, matrix: Matrix) -> int:
        """How many the form takes for it."""

    @property
    def compute_dtype(self) -> torch.dtype:
        return products.computed_in(self.matrix.dtype, self.parameter.device)

    @property
    def nbytes(self) -> int:
        return self.parameter.nbytes
