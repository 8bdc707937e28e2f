"""A frozen weight in four bits: NF4 with double quantisation.

The format is that of `llama/kernels/four_bit_codes.py`: 4.127 bits a weight in all. The numbers are
bitsandbytes' own, to the last bit; this is the one file that knows of that library, which makes the
codes. From these the dense matrix is made by a kernel of ours where kernels are compiled on a GPU,
which takes half the time, and by the library elsewhere.

Letters: B blocks of 64 weights, in the order of the matrix's rows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from llama.base import packed
from llama.base.packed import Matrix, Packed
from llama.kernels import products
from llama.kernels.compiled import compiled
from llama.kernels.four_bit_codes import BLOCK, GROUP, LEVELS, values_on
from llama.kernels.four_bits import from_four_bits
from llama.kernels.paths import on_cuda


class NF4(Packed):
    """`FrozenWeight` of the codes of the weights, two to a byte, `[32 B]`; those of the absmax,
    `[B]` rounded up to a multiple of 4; and in float32 their scales, `[B / 256]`, rounded up, their
    mean and what each of their codes stands for, `[256]`.

    Each product makes the dense matrix anew, and lets it go; a shard is quantised by itself."""

    MADE_DENSE: ClassVar[bool] = True
    ROUNDS_INPUT: ClassVar[bool] = False
    ADDS: ClassVar[bool] = True
    CAPABILITY: ClassVar[tuple[int, int]] = (0, 0)

    @classmethod
    def bytes_of(cls, matrix: Matrix) -> int:
        return sum(_sizes(matrix.shape.numel()))

    @torch.no_grad()
    def fill(self, stored: torch.Tensor) -> None:
        ops, parts = _operators(), self._parts()
        parts.levels.copy_(torch.tensor(_levels()))
        found = []
        count = packed.AT_ONCE
        places = parts.codes.split(count // 2)
        for piece, place in zip(stored.reshape(-1).split(count), places, strict=True):
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

    def taken(self, x_TI: torch.Tensor) -> None:
        return None

    def times(
        self, x_TI: torch.Tensor, taken: None = None, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        return products.times(x_TI, self._as(x_TI.dtype), into)

    def times_transposed(
        self,
        g_TO: torch.Tensor,
        onto: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return products.times_transposed(g_TO, self._as(g_TO.dtype), onto, into)

    def dense(self) -> torch.Tensor:
        return self._as(self.compute_dtype)

    def _as(self, dtype: torch.dtype) -> torch.Tensor:
        """`W` in `dtype`. Nothing here waits for the device, or depends on what the bytes are."""
        parts, count = self._parts(), self.matrix.shape.numel()
        if on_cuda(parts.codes) and compiled():
            dense = from_four_bits(*parts.all(), values_on(parts.codes.device), dtype)
        else:
            dense = _by_bitsandbytes(parts, dtype)
        return dense.view(-1)[:count].view(self.matrix.shape)

    def _parts(self) -> _Parts:
        return _Parts(self.parameter.detach(), self.matrix.shape.numel())


def _by_bitsandbytes(parts: _Parts, dtype: torch.dtype) -> torch.Tensor:
    ops = _operators()
    absmax = ops.dequantize_blockwise(
        parts.absmax, parts.scales, parts.levels, GROUP, torch.float32
    )
    absmax.add_(parts.mean)
    # In rows of one block: bitsandbytes' CPU kernel takes none to reach over a row's end.
    rows = [absmax.numel(), BLOCK]
    return ops.dequantize_4bit(parts.codes, absmax, BLOCK, "nf4", rows, dtype)


class _Parts:
    """Views of the bytes of a matrix of `count` weights."""

    def __init__(self, held: torch.Tensor, count: int) -> None:
        codes, absmax, scales, mean, levels = held.split(_sizes(count))
        self.codes = codes
        self.absmax = absmax[: -(-count // BLOCK)]
        self.scales = scales.view(torch.float32)
        self.mean = mean.view(torch.float32).squeeze()
        self.levels = levels.view(torch.float32)

    def all(self) -> tuple[torch.Tensor, ...]:
        """In the order in which `from_four_bits` takes them."""
        return self.codes, self.absmax, self.scales, self.mean, self.levels


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
