"""What the kernels of the low-rank paths (`triton_paths.py`, `triton_path_gradients.py`) do with
tiles of their tensors, and how the parts that their programs leave are added up.

`RANK` is the rank, rounded up to what the matrix units take; what is beyond `rank` is zero.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportUnboundVariable=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llama.kernels.triton_kernels import column_keys, row_keys

AMPERE = 8, 0
"""The compute capability from which on a GPU rounds two numbers to bf16 by one instruction."""


def _all_from(capability: tuple[int, int]) -> bool:
    """Whether there are GPUs here, each of that compute capability or of a later one."""
    count = torch.cuda.device_count()
    every = [torch.cuda.get_device_capability(index) for index in range(count)]
    return bool(every) and min(every) >= capability


ROUNDS_TWO = tl.constexpr(_all_from(AMPERE))


@triton.jit
def tile(pointer, rows, columns, stride, tokens, width):
    """Elements of `[tokens, width]`, zero outside."""
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + places, mask=inside, other=0.0)


@triton.jit
def put(pointer, values, rows, columns, stride, tokens, width):
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    tl.store(pointer + places, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b, onto):
    """`onto + a b`, of float32 in float32's own arithmetic."""
    return tl.dot(a, b, onto, input_precision="ieee")


@triton.jit
def sigmoid(x):
    """`1 / (1 + 2^(-x / ln 2))` of float32, by the two functions that a GPU has in hardware, each
    right to some units of the last place. The compiler's own exponential and division go by the
    same two, with as many instructions again for results below the smallest normal number, which
    here are added to 1 or are a sigmoid of less than 1e-38."""
    power = tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def rounded(x, kind: tl.constexpr):
    """Float32 rounded to a `kind`, in float32 again. To bf16 two numbers at a time, if that can be:
    one at a time goes by a unit that does a quarter as many, and has the sigmoid to do."""
    if ROUNDS_TWO and kind == tl.bfloat16:
        bits = tl.inline_asm_elementwise(
            "{ .reg .b32 two; cvt.rn.bf16x2.f32 two, $3, $2;"
            " shl.b32 $0, two, 16; and.b32 $1, two, 0xffff0000; }",
            "=r,=r,f,f", [x], dtype=tl.int32, is_pure=True, pack=2,
        )  # fmt: skip
        return bits.to(tl.float32, bitcast=True)
    return x.to(kind).to(tl.float32)


@triton.jit
def product(a, b, rows: tl.constexpr, columns: tl.constexpr):
    return dot(a, b, tl.zeros((rows, columns), tl.float32))


@triton.jit
def staying(seed_ptr, rows, columns, least):
    """The mask of a tile."""
    keys = row_keys(seed_ptr, rows)[:, None] * column_keys(seed_ptr, columns)[None, :]
    return keys >= least


@triton.jit
def kept(x, seed_ptr, rows, columns, least, DROP: tl.constexpr):
    """`x` where the mask of the seed has it stay, else zero."""
    if DROP:
        x = tl.where(staying(seed_ptr, rows, columns, least), x, 0.0).to(x.dtype)
    return x


@triton.jit
def sum_of(
    parts_ptr, out_ptr, size, count, factor, block, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    places = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range((count + PARTS - 1) // PARTS):
        parts = step * PARTS + tl.arange(0, PARTS)
        inside = (parts < count)[:, None] & (places < size)[None, :]
        at = parts.to(tl.int64)[:, None] * size + places[None, :]
        total += tl.sum(tl.load(parts_ptr + at, mask=inside, other=0.0), axis=0)
    tl.store(out_ptr + places, (total * factor).to(out_ptr.dtype.element_ty), mask=places < size)


@triton.jit
def sum_parts(parts_ptr, out_ptr, size, count, factor, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """`factor` times the sum of `count` parts of `size` elements each."""
    sum_of(parts_ptr, out_ptr, size, count, factor, tl.program_id(0), PARTS, BLOCK)
