"""A frozen weight in four bits: NF4 with double quantisation.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3. Of each block of
64 weights the largest magnitude, their absmax, is kept, and of each weight which of 16 values it is
nearest to after division by that. The absmax, less their mean, are themselves quantised to eight
bits, in groups of 256 with one float32 scale each: 4.127 bits a weight in all. The numbers are
bitsandbytes' own, to the last bit; this is the one file that knows of it.

Letters: B blocks of 64 weights, in the order of the matrix's rows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from llama.kernels import products

BLOCK = 64
"""Weights that share an absmax."""
GROUP = 256
"""Absmax that share a scale."""
LEVELS = 256
"""Values that an absmax may take, of its scale."""
AT_ONCE = 2**22
"""Weights that are quantised at a time, of which a CPU makes several copies."""


@dataclass(frozen=True)
class Matrix:
    """What a parameter of bytes stands for."""

    shape: torch.Size
    dtype: torch.dtype
    """Of the run, in which it would be held if it were dense."""


class NF4:
    """`FrozenWeight` of one parameter of bytes, so that whatever moves, sends or counts parameters
    has all of it: the codes of the weights, two to a byte, `[32 B]`; those of the absmax, `[B]`
    rounded up to a multiple of 4; and in float32 their scales, `[B / 256]`, rounded up, their mean
    and what each of their codes stands for, `[256]`.

    The parameter's `matrix` says what it is. Each product makes the dense matrix anew, and lets it
    go; a shard is quantised by itself."""

    BY_ROWS: ClassVar[bool] = False
    MADE_DENSE: ClassVar[bool] = True
    ROUNDS_INPUT: ClassVar[bool] = False
    CAPABILITY: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.matrix: Matrix = parameter.matrix  # type: ignore[attr-defined]

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, cut: int = 0
    ) -> nn.Parameter:
        size = sum(_sizes(shape.numel()))
        parameter = nn.Parameter(torch.zeros(size, dtype=torch.uint8, device=device), False)
        parameter.matrix = Matrix(shape, dtype)  # type: ignore[attr-defined]
        return parameter

    @torch.no_grad()
    def fill(self, stored: torch.Tensor) -> None:
        ops, parts = _operators(), self._parts()
        parts.levels.copy_(torch.tensor(_levels()))
        found = []
        pieces = zip(
            stored.reshape(-1).split(AT_ONCE), parts.codes.split(AT_ONCE // 2), strict=True
        )
        for piece, place in pieces:
            values = piece.to(place.device).float()
            values = F.pad(values, (0, -values.numel() % BLOCK))
            codes, absmax = ops.quantize_4bit(values, BLOCK, "nf4", torch.uint8)
            place.copy_(codes.view(-1))
            # Of a block, the absmax may pass over a NaN: this is 0, or NaN where not all is finite.
            found.append(absmax + (values * 0).sum())
        absmax = torch.cat(found)
        parts.mean.copy_(absmax.mean())
        codes, scales = ops.quantize_blockwise(absmax - parts.mean, parts.levels, GROUP)
        parts.absmax.copy_(codes)
        parts.scales.copy_(scales)

    @property
    def compute_dtype(self) -> torch.dtype:
        return products.computed_in(self.matrix.dtype, self.parameter.device)

    @property
    def nbytes(self) -> int:
        return self.parameter.nbytes

    def times(self, x_TI: torch.Tensor) -> torch.Tensor:
        return products.times(x_TI, self._as(x_TI.dtype))

    def times_transposed(
        self, g_TO: torch.Tensor, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        return products.times_transposed(g_TO, self._as(g_TO.dtype), onto)

    def dense(self) -> torch.Tensor:
        return self._as(self.compute_dtype)

    def _as(self, dtype: torch.dtype) -> torch.Tensor:
        """`W` in `dtype`. Nothing here waits for the device, or depends on what the bytes are."""
        ops, parts = _operators(), self._parts()
        absmax = ops.dequantize_blockwise(
            parts.absmax, parts.scales, parts.levels, GROUP, torch.float32
        )
        absmax.add_(parts.mean)
        # In rows of one block: bitsandbytes' CPU kernel takes none to reach over a row's end.
        rows = [absmax.numel(), BLOCK]
        dense = ops.dequantize_4bit(parts.codes, absmax, BLOCK, "nf4", rows, dtype)
        return dense.view(-1)[: self.matrix.shape.numel()].view(self.matrix.shape)

    def _parts(self) -> _Parts:
        return _Parts(self.parameter.detach(), self.matrix.shape.numel())


class _Parts:
    """Views of the bytes of a matrix of `count` weights."""

    def __init__(self, held: torch.Tensor, count: int) -> None:
        codes, absmax, scales, mean, levels = held.split(_sizes(count))
        self.codes = codes
        self.absmax = absmax[: -(-count // BLOCK)]
        self.scales = scales.view(torch.float32)
        self.mean = mean.view(torch.float32).squeeze()
        self.levels = levels.view(torch.float32)


def _sizes(count: int) -> list[int]:
    """Bytes of each part. Those in float32 begin at a multiple of 4."""
    blocks = -(-count // BLOCK)
    floats = [-(-blocks // GROUP), 1, LEVELS]
    return [BLOCK // 2 * blocks, blocks + -blocks % 4, *(4 * n for n in floats)]


def _operators() -> Any:
    _library()
    return torch.ops.bitsandbytes


@lru_cache(maxsize=1)
def _levels() -> list[float]:
    """The values of an absmax's codes."""
    return _library().functional.create_dynamic_map().tolist()


@lru_cache(maxsize=1)
def _library() -> Any:
    """bitsandbytes, imported at the first use: that takes seconds, and it is no dependency of other
    runs. Where the package `kernels` is there, its import would fetch compiled code from a hub for
    a product on CPUs that is not used here; so `kernels` is hidden from it, and what it then says
    is not heard."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with _hidden("kernels"):
        import bitsandbytes
    return bitsandbytes


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Within, an import of `package` fails as if it were not installed."""
    there = package in sys.modules
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if there:
            sys.modules[package] = before  # type: ignore[assignment]
