"""The low-rank paths of adapters on a GPU in Triton, as `llama/fused/paths.py` says them;
`path_forms` calls these kernels.

Each program has some rows (tokens) and columns of the large tensors, reads them once, and makes all
that is made of them with products of its tile and the thin factors. What must be summed over
programs is left in float32, a part for each, and added up by `sum_parts`: in one order, so that a
step gives the same numbers whenever it is taken. `RANK` is the rank, rounded up to what the matrix
units take; what is beyond `rank` is zero.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from llama.kernels.triton_kernels import column_keys, row_keys


@triton.jit
def _tile(pointer, rows, columns, stride, tokens, width):
    """Elements of `[tokens, width]`, zero outside."""
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + places, mask=inside, other=0.0)


@triton.jit
def _put(pointer, values, rows, columns, stride, tokens, width):
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    tl.store(pointer + places, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _dot(a, b, onto):
    """`onto + a b`, of float32 in float32's own arithmetic."""
    return tl.dot(a, b, onto, input_precision="ieee")


@triton.jit
def _product(a, b, rows: tl.constexpr, columns: tl.constexpr):
    return _dot(a, b, tl.zeros((rows, columns), tl.float32))


@triton.jit
def _stays(seed_ptr, rows, columns, least):
    """The mask of a tile."""
    keys = row_keys(seed_ptr, rows)[:, None] * column_keys(seed_ptr, columns)[None, :]
    return keys >= least


@triton.jit
def _kept(x, seed_ptr, rows, columns, least, DROP: tl.constexpr):
    """`x` where the mask of the seed has it stay, else zero."""
    if DROP:
        x = tl.where(_stays(seed_ptr, rows, columns, least), x, 0.0).to(x.dtype)
    return x


@triton.jit
def _sum_of(
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
def sum_parts(
    first_ptr, out_ptr, size, count, second_ptr, second_out_ptr, second_size, second_count,
    factor, blocks, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`factor` times the sum of `count` parts of `size` elements each, which takes the first
    `blocks` programs; and of a second such set, which takes the others."""
    block = tl.program_id(0)
    if block < blocks:
        _sum_of(first_ptr, out_ptr, size, count, factor, block, PARTS, BLOCK)
    else:
        block -= blocks
        _sum_of(second_ptr, second_out_ptr, second_size, second_count, factor, block, PARTS, BLOCK)


@triton.jit
def hidden_parts(
    x_ptr, a_0, a_1, a_2, seed_ptr, out_ptr,
    tokens, width, rank, x_stride, least, steps,
    COUNT: tl.constexpr, DROP: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    first = tl.zeros((ROWS, RANK), tl.float32)
    second, third = first, first
    for step in range(steps):
        columns = (split * steps + step) * COLUMNS + tl.arange(0, COLUMNS)
        x = _tile(x_ptr, rows, columns, x_stride, tokens, width)
        x = _kept(x, seed_ptr, rows, columns, least, DROP)
        first = _dot(x, tl.trans(_tile(a_0, ranks, columns, width, rank, width)), first)
        if COUNT > 1:
            second = _dot(x, tl.trans(_tile(a_1, ranks, columns, width, rank, width)), second)
        if COUNT > 2:
            third = _dot(x, tl.trans(_tile(a_2, ranks, columns, width, rank, width)), third)
    size = tokens * rank
    out = out_ptr + split.to(tl.int64) * COUNT * size
    _put(out, first, rows, ranks, rank, tokens, rank)
    if COUNT > 1:
        _put(out + size, second, rows, ranks, rank, tokens, rank)
    if COUNT > 2:
        _put(out + 2 * size, third, rows, ranks, rank, tokens, rank)


@triton.jit
def output_parts(
    grad_ptr, hidden_ptr, b_ptr, part_ptr, grad_b_ptr,
    tokens, width, rank, grad_stride, steps,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    block, split = tl.program_id(0), tl.program_id(1)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    b = _tile(b_ptr, columns, ranks, rank, width, rank)
    grad_b = tl.zeros((COLUMNS, RANK), tl.float32)
    part_ptr += block.to(tl.int64) * tokens * rank
    for step in range(steps):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        grad = _tile(grad_ptr, rows, columns, grad_stride, tokens, width)
        _put(part_ptr, _product(grad, b, ROWS, RANK), rows, ranks, rank, tokens, rank)
        hidden = _tile(hidden_ptr, rows, ranks, rank, tokens, rank)
        grad_b = _dot(tl.trans(grad), hidden, grad_b)
    _put(grad_b_ptr + split.to(tl.int64) * width * rank, grad_b, columns, ranks, rank, width, rank)


@triton.jit
def _added(total, added, stays, kept_scale, DROP: tl.constexpr):
    """`total` and the gradient to the input, where its mask has that stay."""
    if DROP:
        added = tl.where(stays, added * kept_scale, 0.0)
    return total + added


@triton.jit
def input_parts(
    x_ptr, scale_ptr, weight_ptr, onto_ptr, part_0, part_1, part_2, a_0, a_1, a_2,
    seed_ptr, grad_a_ptr, other_1, other_2,
    tokens, width, rank, x_stride, onto_stride, least, kept_scale, steps,
    COUNT: tl.constexpr, NORM: tl.constexpr, ONTO: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    kind = x_ptr.dtype.element_ty
    first_a = _tile(a_0, ranks, columns, width, rank, width)
    second_a, third_a = first_a, first_a
    if COUNT > 1:
        second_a = _tile(a_1, ranks, columns, width, rank, width)
    if COUNT > 2:
        third_a = _tile(a_2, ranks, columns, width, rank, width)
    first = tl.zeros((RANK, COLUMNS), tl.float32)
    second, third = first, first
    if NORM:
        weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0)
        weight = weight.to(kind).to(tl.float32)[None, :]
    for step in range(steps):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        x = _tile(x_ptr, rows, columns, x_stride, tokens, width)
        if NORM:
            scale = tl.load(scale_ptr + rows, mask=rows < tokens, other=0.0)[:, None]
            x = ((x.to(tl.float32) * scale).to(kind).to(tl.float32) * weight).to(kind)
        stays = _stays(seed_ptr, rows, columns, least) if DROP else True
        if DROP:
            x = tl.where(stays, x, 0.0).to(kind)
        part = _tile(part_0, rows, ranks, rank, tokens, rank)
        first = _dot(tl.trans(part), x, first)
        if ONTO:
            added = _product(part, first_a, ROWS, COLUMNS)
        if COUNT > 1:
            part = _tile(part_1, rows, ranks, rank, tokens, rank)
            second = _dot(tl.trans(part), x, second)
            if ONTO:
                added = _dot(part, second_a, added)
        if COUNT > 2:
            part = _tile(part_2, rows, ranks, rank, tokens, rank)
            third = _dot(tl.trans(part), x, third)
            if ONTO:
                added = _dot(part, third_a, added)
        if ONTO:
            total = _tile(onto_ptr, rows, columns, onto_stride, tokens, width).to(tl.float32)
            if ONTO > 1:
                total += _tile(other_1, rows, columns, width, tokens, width).to(tl.float32)
            if ONTO > 2:
                total += _tile(other_2, rows, columns, width, tokens, width).to(tl.float32)
            total = _added(total, added, stays, kept_scale, DROP)
            _put(onto_ptr, total, rows, columns, onto_stride, tokens, width)
    size = rank * width
    out = grad_a_ptr + split.to(tl.int64) * COUNT * size
    _put(out, first, ranks, columns, width, rank, width)
    if COUNT > 1:
        _put(out + size, second, ranks, columns, width, rank, width)
    if COUNT > 2:
        _put(out + 2 * size, third, ranks, columns, width, rank, width)


@triton.jit
def _with_path(x, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind: tl.constexpr):
    """A tile of an output with what its adapter adds, rounded as it would be stored."""
    hidden = _tile(hidden_ptr, rows, ranks, rank, tokens, rank)
    added = tl.dot(hidden, tl.trans(b), input_precision="ieee")
    return (x + scale * added).to(kind).to(tl.float32)


@triton.jit
def add_tiles(
    y_ptr, x_ptr, hidden_ptr, b_ptr, tokens, width, rank, y_stride, x_stride, scale,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = y_ptr.dtype.element_ty
    b = _tile(b_ptr, columns, ranks, rank, width, rank)
    y = _tile(y_ptr, rows, columns, y_stride, tokens, width).to(tl.float32)
    y = _with_path(y, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
    x = _tile(x_ptr, rows, columns, x_stride, tokens, width).to(tl.float32)
    _put(y_ptr, x + y, rows, columns, y_stride, tokens, width)


@triton.jit
def gated_parts(
    gate_ptr, up_ptr, h_ptr, hidden_g, b_g, hidden_u, b_u, a_ptr, seed_ptr, out_ptr,
    tokens, width, rank, gate_stride, up_stride, scale_g, scale_u, least, steps,
    GATE: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = h_ptr.dtype.element_ty
    hidden = tl.zeros((ROWS, RANK), tl.float32)
    for step in range(steps):
        columns = (split * steps + step) * COLUMNS + tl.arange(0, COLUMNS)
        gate = _tile(gate_ptr, rows, columns, gate_stride, tokens, width).to(tl.float32)
        up = _tile(up_ptr, rows, columns, up_stride, tokens, width).to(tl.float32)
        if GATE:
            b = _tile(b_g, columns, ranks, rank, width, rank)
            gate = _with_path(gate, hidden_g, b, rows, ranks, tokens, rank, scale_g, kind)
        if UP:
            b = _tile(b_u, columns, ranks, rank, width, rank)
            up = _with_path(up, hidden_u, b, rows, ranks, tokens, rank, scale_u, kind)
        h = ((gate * tl.sigmoid(gate)).to(kind).to(tl.float32) * up).to(kind)
        _put(h_ptr, h, rows, columns, width, tokens, width)
        if DOWN:
            a = tl.trans(_tile(a_ptr, ranks, columns, width, rank, width))
            hidden = _dot(_kept(h, seed_ptr, rows, columns, least, DROP), a, hidden)
    if DOWN:
        out = out_ptr + split.to(tl.int64) * tokens * rank
        _put(out, hidden, rows, ranks, rank, tokens, rank)


@triton.jit
def gated_backward_parts(
    grad_ptr, gate_ptr, up_ptr, hidden_g, b_g, hidden_u, b_u, down_ptr, a_ptr, seed_ptr, grad_a_ptr,
    tokens, width, rank, grad_stride, gate_stride, up_stride,
    scale_g, scale_u, least, kept_scale, steps,
    GATE: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = gate_ptr.dtype.element_ty
    if GATE:
        gate_b = _tile(b_g, columns, ranks, rank, width, rank)
    if UP:
        up_b = _tile(b_u, columns, ranks, rank, width, rank)
    if DOWN:
        a = _tile(a_ptr, ranks, columns, width, rank, width)
        grad_a = tl.zeros((RANK, COLUMNS), tl.float32)
    for step in range(steps):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        grad = _tile(grad_ptr, rows, columns, grad_stride, tokens, width).to(tl.float32)
        gate = _tile(gate_ptr, rows, columns, gate_stride, tokens, width).to(tl.float32)
        up = _tile(up_ptr, rows, columns, up_stride, tokens, width).to(tl.float32)
        if GATE:
            gate = _with_path(gate, hidden_g, gate_b, rows, ranks, tokens, rank, scale_g, kind)
        if UP:
            up = _with_path(up, hidden_u, up_b, rows, ranks, tokens, rank, scale_u, kind)
        sigmoid = tl.sigmoid(gate)
        if DOWN:
            h = ((gate * sigmoid).to(kind).to(tl.float32) * up).to(kind)
            stays = _stays(seed_ptr, rows, columns, least) if DROP else True
            if DROP:
                h = tl.where(stays, h, 0.0).to(kind)
            part = _tile(down_ptr, rows, ranks, rank, tokens, rank)
            grad_a = _dot(tl.trans(part), h, grad_a)
            grad = _added(grad, _product(part, a, ROWS, COLUMNS), stays, kept_scale, DROP)
        to_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        _put(gate_ptr, to_gate, rows, columns, gate_stride, tokens, width)
        _put(up_ptr, gate * sigmoid * grad, rows, columns, up_stride, tokens, width)
    if DOWN:
        own = split.to(tl.int64) * width * rank
        _put(grad_a_ptr + own, grad_a, ranks, columns, width, rank, width)


@triton.jit
def rotate_tiles(
    x_ptr, cos_ptr, sin_ptr, out_ptr, hidden_ptr, b_ptr,
    tokens, heads, half, token_stride, head_stride, rank, scale,
    PATH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Some tokens of one head, each half of which takes from the other."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    columns = tl.arange(0, HALF)
    kind: tl.constexpr = x_ptr.dtype.element_ty
    x_ptr += head.to(tl.int64) * head_stride
    first = _tile(x_ptr, rows, columns, token_stride, tokens, half).to(tl.float32)
    second = _tile(x_ptr + half, rows, columns, token_stride, tokens, half).to(tl.float32)
    if PATH:
        ranks = tl.arange(0, RANK)
        b_ptr += head * 2 * half * rank
        b = _tile(b_ptr, columns, ranks, rank, half, rank)
        first = _with_path(first, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
        b = _tile(b_ptr + half * rank, columns, ranks, rank, half, rank)
        second = _with_path(second, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
    cos_1 = _tile(cos_ptr, rows, columns, 2 * half, tokens, half).to(tl.float32)
    cos_2 = _tile(cos_ptr + half, rows, columns, 2 * half, tokens, half).to(tl.float32)
    sin_1 = _tile(sin_ptr, rows, columns, 2 * half, tokens, half).to(tl.float32)
    sin_2 = _tile(sin_ptr + half, rows, columns, 2 * half, tokens, half).to(tl.float32)
    turned_1 = (first * cos_1).to(kind).to(tl.float32) + second * sin_1
    turned_2 = (second * cos_2).to(kind).to(tl.float32) + first * sin_2
    out = out_ptr + head * 2 * half
    _put(out, turned_1, rows, columns, heads * 2 * half, tokens, half)
    _put(out + half, turned_2, rows, columns, heads * 2 * half, tokens, half)
