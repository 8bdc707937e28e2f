"""The kernel of a GPU that makes weights in four bits dense, in Triton, and what calls it: the form
of the function of `four_bits.py`, bit for bit.

Letters: B blocks of weights.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl

from llama.kernels.four_bit_codes import BLOCK, GROUP

_BLOCKS = 128
"""Of weights, that a program makes dense."""


@triton.jit
def dense_blocks(
    codes_ptr, absmax_ptr, scales_ptr, mean_ptr, levels_ptr, values_ptr, out_ptr, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    level = tl.load(absmax_ptr + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales_ptr + block // GROUP, mask=inside, other=0.0)
    absmax = tl.load(levels_ptr + level) * scale + tl.load(mean_ptr)
    bytes_ = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    pair = tl.load(codes_ptr + bytes_, mask=inside[:, None], other=0).to(tl.int32)
    # The 16 values lie in one line of the cache, so that the threads of a warp read theirs at once.
    upper = tl.load(values_ptr + (pair >> 4)) * absmax[:, None]
    lower = tl.load(values_ptr + (pair & 15)) * absmax[:, None]
    kind = out_ptr.dtype.element_ty
    weights = tl.interleave(upper.to(kind), lower.to(kind))
    places = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + places, weights, mask=inside[:, None])


def from_four_bits(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    scales: torch.Tensor,
    mean: torch.Tensor,
    levels: torch.Tensor,
    values: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    blocks = len(absmax)
    out = torch.empty((blocks, BLOCK), dtype=dtype, device=codes.device)
    dense_blocks[(triton.cdiv(blocks, _BLOCKS),)](
        *(codes, absmax, scales, mean, levels, values, out, blocks),
        BLOCKS=_BLOCKS,
        BLOCK=BLOCK,
        GROUP=GROUP,
        num_warps=4,
        enable_fp_fusion=False,  # a product and a sum in one would be rounded once
    )
    return out


FORMS: Mapping[str, Callable[..., Any]] = MappingProxyType({"from_four_bits": from_four_bits})
"""By the name of the function that each is a form of."""
