"""The gradients of adapters' factors on a GPU in Triton, made as the kernels of `triton_paths.py`
are; `path_gradient_forms` calls these.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from llama.kernels.triton_tiles import dot, product, put, staying, sum_of, tile


@triton.jit
def _of_layer(place, start_1, start_2, first, second, third, COUNT: tl.constexpr):
    """What is said of that one of `COUNT` layers to which `place` belongs: those of the second
    begin at `start_1`, those of the third at `start_2`."""
    found = first
    if COUNT > 1:
        if place >= start_1:
            found = second
    if COUNT > 2:
        if place >= start_2:
            found = third
    return found


@triton.jit
def output_parts(
    grad_0, grad_1, grad_2, hidden_0, hidden_1, hidden_2, b_0, b_1, b_2, part_ptr, grad_b_ptr,
    width_0, width_1, width_2, stride_0, stride_1, stride_2, scale_0, scale_1, scale_2,
    tokens, rank, steps,
    COUNT: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has columns of one layer's output. Parts of the gradients to `A x` lie by their
    programs' columns, `[blocks, T, R]`; those to all B one below the other, `[splits, O, R]`.
    The widths of layers that are not there are 0."""
    block, split = tl.program_id(0), tl.program_id(1)
    at_1 = tl.cdiv(width_0, COLUMNS)
    at_2 = at_1 + tl.cdiv(width_1, COLUMNS)
    grad_ptr = _of_layer(block, at_1, at_2, grad_0, grad_1, grad_2, COUNT)
    hidden_ptr = _of_layer(block, at_1, at_2, hidden_0, hidden_1, hidden_2, COUNT)
    b_ptr = _of_layer(block, at_1, at_2, b_0, b_1, b_2, COUNT)
    width = _of_layer(block, at_1, at_2, width_0, width_1, width_2, COUNT)
    stride = _of_layer(block, at_1, at_2, stride_0, stride_1, stride_2, COUNT)
    scale = _of_layer(block, at_1, at_2, scale_0, scale_1, scale_2, COUNT)
    columns = (block - _of_layer(block, at_1, at_2, 0, at_1, at_2, COUNT)) * COLUMNS
    columns += tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    b = tile(b_ptr, columns, ranks, rank, width, rank)
    grad_b = tl.zeros((COLUMNS, RANK), tl.float32)
    part_ptr += block.to(tl.int64) * tokens * rank
    for step in range(steps):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        grad = tile(grad_ptr, rows, columns, stride, tokens, width)
        part = product(grad, b, ROWS, RANK) * scale
        put(part_ptr, part, rows, ranks, rank, tokens, rank)
        hidden = tile(hidden_ptr, rows, ranks, rank, tokens, rank)
        grad_b = dot(tl.trans(grad), hidden, grad_b)
    before = _of_layer(block, at_1, at_2, 0, width_0, width_0 + width_1, COUNT)
    grad_b_ptr += (split.to(tl.int64) * (width_0 + width_1 + width_2) + before) * rank
    put(grad_b_ptr, grad_b * scale, columns, ranks, rank, width, rank)


@triton.jit
def sum_output_parts(
    part_ptr, part_out, grad_b_ptr, grad_b_out,
    size, blocks_0, blocks_1, blocks_2, programs, grad_b_size, splits,
    COUNT: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of what `output_parts` leaves: `programs` for each layer's gradient to `A x`, of
    `size` elements, and the others for those to all B."""
    program = tl.program_id(0)
    if program < COUNT * programs:
        layer = program // programs
        blocks = _of_layer(layer, 1, 2, blocks_0, blocks_1, blocks_2, COUNT)
        before = _of_layer(layer, 1, 2, 0, blocks_0, blocks_0 + blocks_1, COUNT)
        part_ptr += before.to(tl.int64) * size
        part_out += layer.to(tl.int64) * size
        sum_of(part_ptr, part_out, size, blocks, 1.0, program % programs, PARTS, BLOCK)
    else:
        program -= COUNT * programs
        sum_of(grad_b_ptr, grad_b_out, grad_b_size, splits, 1.0, program, PARTS, BLOCK)


@triton.jit
def _normed(x, scale_ptr, weight, rows, tokens):
    scale = tl.load(scale_ptr + rows, mask=rows < tokens, other=0.0)[:, None]
    wide = (x.to(tl.float32) * scale).to(x.dtype).to(tl.float32)
    return (wide * weight.to(x.dtype).to(tl.float32)).to(x.dtype)


@triton.jit
def _with_others(total, other_1, other_2, rows, columns, tokens, width, ONTO: tl.constexpr):
    """The sum of `total` and the tiles of `ONTO - 1` others."""
    if ONTO > 1:
        total += tile(other_1, rows, columns, width, tokens, width).to(tl.float32)
    if ONTO > 2:
        total += tile(other_2, rows, columns, width, tokens, width).to(tl.float32)
    return total


@triton.jit
def input_parts(
    x_ptr, scale_ptr, weight_ptr, onto_ptr, part_0, part_1, part_2, a_0, a_1, a_2,
    seed_ptr, grad_a_ptr, other_1, other_2,
    tokens, width, rank, x_stride, onto_stride, row, least, kept_scale, steps,
    COUNT: tl.constexpr, NORM: tl.constexpr, ONTO: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    first_a = tile(a_0, ranks, columns, width, rank, width)
    second_a, third_a = first_a, first_a
    if COUNT > 1:
        second_a = tile(a_1, ranks, columns, width, rank, width)
    if COUNT > 2:
        third_a = tile(a_2, ranks, columns, width, rank, width)
    first = tl.zeros((COLUMNS, RANK), tl.float32)
    second, third = first, first
    if NORM:
        weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0)[None, :]
    # Said here, the stages are those of all that the loop reads, not of what it multiplies alone.
    for step in tl.range(0, steps, num_stages=STAGES):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        x = tile(x_ptr, rows, columns, x_stride, tokens, width)
        if NORM:
            x = _normed(x, scale_ptr, weight, rows, tokens)
        if DROP:
            stays = staying(seed_ptr, row + rows, columns, least)
            x = tl.where(stays, x, 0.0).to(x.dtype)
        if ONTO:
            total = tile(onto_ptr, rows, columns, onto_stride, tokens, width).to(tl.float32)
            total = _with_others(total, other_1, other_2, rows, columns, tokens, width, ONTO)
            # What is under the mask is summed apart; without one the products add to `total`.
            added = tl.zeros((ROWS, COLUMNS), tl.float32) if DROP else total
        part = tile(part_0, rows, ranks, rank, tokens, rank)
        first = dot(tl.trans(x), part, first)
        if ONTO:
            added = dot(part, first_a, added)
        if COUNT > 1:
            part = tile(part_1, rows, ranks, rank, tokens, rank)
            second = dot(tl.trans(x), part, second)
            if ONTO:
                added = dot(part, second_a, added)
        if COUNT > 2:
            part = tile(part_2, rows, ranks, rank, tokens, rank)
            third = dot(tl.trans(x), part, third)
            if ONTO:
                added = dot(part, third_a, added)
        if ONTO:
            if DROP:
                added = total + tl.where(stays, added * kept_scale, 0.0)
            put(onto_ptr, added, rows, columns, onto_stride, tokens, width)
    size = rank * width
    out = grad_a_ptr + split.to(tl.int64) * COUNT * size
    put(out, tl.trans(first), ranks, columns, width, rank, width)
    if COUNT > 1:
        put(out + size, tl.trans(second), ranks, columns, width, rank, width)
    if COUNT > 2:
        put(out + 2 * size, tl.trans(third), ranks, columns, width, rank, width)
