"""How the kernels of the low-rank paths are cut up: sizes of tiles, how many programs share a sum,
and the sum of what each of them leaves.

Shapes: T tokens, R rank.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from llama.kernels.triton_tiles import sum_parts

Tensors = tuple[torch.Tensor, ...]

LARGEST_RANK = 64
"""Above it a tile's sums no longer fit beside it in the registers: the functions are then taken as
they are written, operation by operation."""
FEW = 2048
"""Tokens, up to which tiles `OF_FEW` are taken."""
MOST_LAYERS = 3
"""That a kernel takes at once."""
SUMMED = 16, 256
"""Parts that a program reads at a time where it sums them, and how many elements of each it has."""


class Tile(NamedTuple):
    """How a kernel is cut up; measured on H100s and H200s with 1024 and 8192 tokens."""

    rows: int
    columns: int
    warps: int
    programs: int = 1
    """The most that share a sum, over columns with rows of their own, or over rows: some times the
    hundred-odd processors of a GPU, as was measured to be fastest."""
    stages: int = 3
    """Of its loop, that are under way at once."""

    def sizes(self, rank: int) -> dict[str, int]:
        """What the kernel is compiled for."""
        shape = {"ROWS": self.rows, "COLUMNS": self.columns, "RANK": room(rank)}
        return {**shape, "num_warps": self.warps, "num_stages": self.stages}

    def narrowed(self, x: torch.Tensor, rank: int, least: int = 0) -> Tile:
        """With fewer columns, and not below `least`, where numbers have more bytes or the rank is
        larger than the tile was measured with: 2 and 16."""
        columns = self.columns * 32 // (x.element_size() * room(rank))
        return self._replace(columns=max(least, columns))


def mask(p: float) -> tuple[int, float]:
    """The least product of keys that stays, and what is multiplied there."""
    return int(p * 2**32) - 2**31, 1.0 / (1.0 - p)


def dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy of it where its last dimension is not laid out side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def three(given: Sequence[Any], filler: Any) -> list[Any]:
    """As many as the kernels take; those beyond `given` are not read."""
    assert len(given) <= MOST_LAYERS
    return [*given, *[filler] * (MOST_LAYERS - len(given))]


def room(rank: int) -> int:
    """What the matrix units take for `rank`."""
    return max(16, triton.next_power_of_2(rank))


def share(size: int, step: int, others: int, programs: int) -> tuple[int, int]:
    """How many `step`s of `size` each of several programs takes, and how many they are, where
    `others` times as many make up to `programs`."""
    steps = triton.cdiv(size, step)
    each = triton.cdiv(steps, max(1, min(steps, programs // others)))
    return each, triton.cdiv(steps, each)


def empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def summed(dtype: torch.dtype, factor: float, parts: torch.Tensor) -> torch.Tensor:
    """`factor` times the sum over dimension 0 of `parts`, in `dtype`."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    (each, block), size = SUMMED, out.numel()
    grid = (triton.cdiv(size, block),)
    sum_parts[grid](parts, out, size, len(parts), factor, PARTS=each, BLOCK=block, num_warps=4)
    return out
