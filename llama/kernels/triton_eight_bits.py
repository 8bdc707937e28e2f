"""The kernels of a GPU around products in eight bits, in Triton, and what calls them: forms of the
functions of `eight_bits.py`.

Codes are those of torch's operators, bit for bit: divisions and roundings are the same.

Shapes: T tokens, K what is summed over, N outputs, G groups.
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

from llama.kernels.codes import GROUP, LARGEST, SMALLEST, TILE

_GROUPS = 32
"""Of a token, that a program quantises."""
_TURNED = 128
"""Rows and columns that a program turns."""
_TOGETHER = 8
"""Tiles of tokens that are multiplied by one after the other of the weight's, so that the device's
cache holds both."""


@triton.jit
def _magnitude(values):
    """Without its sign the bits of a number, taken for a whole one, are in the order of magnitudes;
    NaN is above infinity."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _scale(magnitude, largest, smallest):
    scale = tl.div_rn(magnitude.to(tl.float32, bitcast=True), largest)
    return tl.where(scale < smallest, smallest, scale)  # a NaN stays


@triton.jit
def float8_rows(
    x_ptr, before_ptr, codes_ptr, scales_ptr, width, filled, x_stride, largest, smallest,
    BEFORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if BEFORE:
        x = x * tl.load(before_ptr + columns, mask=inside, other=0.0)
    scale = _scale(tl.max(_magnitude(x), axis=0), largest, smallest)
    tl.store(scales_ptr + row, scale)
    codes = tl.div_rn(x, scale).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + row * filled + columns, codes, mask=columns < filled)


@triton.jit
def int8_groups(
    x_ptr, before_ptr, codes_ptr, scales_ptr, width, groups, x_stride, largest, smallest,
    BEFORE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if BEFORE:
        x = x * tl.load(before_ptr + columns, mask=inside, other=0.0)
    scale = _scale(tl.max(_magnitude(x), axis=1), largest, smallest)
    tl.store(scales_ptr + row * groups + group, scale, mask=group < groups)
    # Numbers from 2^23 to 2^24 are whole: a sum with one is rounded, and of two alike to the even.
    whole = (tl.div_rn(x, scale[:, None]) + 12582912.0) - 12582912.0
    codes = tl.where(whole == whole, whole, 0.0).to(tl.int8)  # NaN has no code, but a scale
    tl.store(codes_ptr + row * groups * GROUP + columns, codes, mask=group[:, None] < groups)


@triton.jit
def turned_tiles(
    codes_ptr, out_ptr, rows, columns, filled_rows, filled_columns, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    place = codes_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tile = tl.load(place, mask=inside, other=0)
    inside = (column[:, None] < filled_columns) & (row[None, :] < filled_rows)
    place = out_ptr + column.to(tl.int64)[:, None] * filled_rows + row[None, :]
    tl.store(place, tl.trans(tile), mask=inside)


@triton.jit
def grouped_tiles(
    codes_ptr, scales_ptr, weight_ptr, after_ptr, out_ptr, tokens, outputs, width,
    groups: tl.constexpr, AFTER: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr,
    TOGETHER: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(tokens, BLOCK_T), tl.cdiv(outputs, BLOCK_N)
    first = tl.program_id(0) // (TOGETHER * across) * TOGETHER
    number = tl.program_id(0) % (TOGETHER * across)
    height = tl.minimum(down - first, TOGETHER)
    token = (first + number % height) * BLOCK_T + tl.arange(0, BLOCK_T)
    output = number // height * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, GROUP)
    # Beyond the last row stands the first again, whose sums are not written.
    row = (token % tokens).to(tl.int64)
    x = codes_ptr + row[:, None] * (groups * GROUP) + k[None, :]
    weight = weight_ptr + (output % outputs).to(tl.int64)[None, :] * width + k[:, None]
    scales = scales_ptr + row * groups
    scale = tl.load(scales)
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for group in range(0, groups):
        following = tl.load(scales + tl.minimum(group + 1, groups - 1))  # while the product runs
        x_codes = tl.load(x)
        if WHOLE:
            weight_codes = tl.load(weight)
        else:
            weight_codes = tl.load(weight, mask=k[:, None] < width - group * GROUP, other=0)
        sums = tl.dot(x_codes, weight_codes, out_dtype=tl.int32)
        total += sums.to(tl.float32) * scale[:, None]
        scale = following
        x += GROUP
        weight += GROUP
    if AFTER:
        total *= tl.load(after_ptr + output, mask=output < outputs, other=0.0)[None, :]
    place = out_ptr + token.to(tl.int64)[:, None] * outputs + output[None, :]
    inside = (token[:, None] < tokens) & (output[None, :] < outputs)
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside)


def quantised_rows(
    x: torch.Tensor, before: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x if x.stride(-1) == 1 else x.contiguous()
    tokens, width = x.shape
    is_int8 = dtype == torch.int8
    filled = _up(width, GROUP if is_int8 else TILE)
    groups = filled // GROUP if is_int8 else 1
    codes = torch.empty((tokens, filled), dtype=dtype, device=x.device)
    scales = torch.empty((tokens, groups), dtype=torch.float32, device=x.device)
    tensors = (x, scales if before is None else before, codes, scales)
    numbers = (x.stride(0), LARGEST[dtype], SMALLEST)
    has = before is not None
    if is_int8:
        together = min(_GROUPS, triton.next_power_of_2(groups))
        grid = (tokens, triton.cdiv(groups, together))
        int8_groups[grid](
            *(*tensors, width, groups, *numbers), BEFORE=has, GROUPS=together, GROUP=GROUP
        )
        return codes, scales
    block = triton.next_power_of_2(filled)
    float8_rows[(tokens,)](
        *(*tensors, width, filled, *numbers),
        BEFORE=has,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
    return codes, scales


def turned(codes: torch.Tensor) -> torch.Tensor:
    rows, columns = codes.shape
    filled = _up(rows, TILE), _up(columns, TILE)
    out = torch.empty((filled[1], filled[0]), dtype=torch.int8, device=codes.device)
    grid = tuple(triton.cdiv(size, _TURNED) for size in filled)
    turned_tiles[grid](
        *(codes.contiguous().view(torch.int8), out, rows, columns, *filled),
        BLOCK=_TURNED,
        num_warps=8,
    )
    return out.view(codes.dtype)


def grouped_product(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    after: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    (tokens, filled), (outputs, width) = codes.shape, weight.shape
    out = torch.empty((tokens, outputs), dtype=dtype, device=codes.device)
    block_t, block_n, warps, stages = _tiles(tokens)
    grouped_tiles[(triton.cdiv(tokens, block_t) * triton.cdiv(outputs, block_n),)](
        *(codes, scales, weight.contiguous(), scales if after is None else after, out),
        *(tokens, outputs, width),
        groups=scales.shape[1],
        AFTER=after is not None,
        WHOLE=filled == width,
        GROUP=GROUP,
        TOGETHER=_TOGETHER,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _tiles(tokens: int) -> tuple[int, int, int, int]:
    """Tokens and outputs of a program, its warps, and the groups that are under way to it: where
    there are few tokens the weight is waited for, and more programs read it."""
    if tokens <= 16:
        return 16, 32, 4, 4
    return (64, 128, 4, 3) if tokens <= 64 else (128, 128, 8, 3)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


FORMS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "grouped_product": grouped_product,
        "quantised_rows": quantised_rows,
        "turned": turned,
    }
)
"""By the name of the function that each is a form of."""
