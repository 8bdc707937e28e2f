"""The low-rank paths of adapters on a GPU in Triton, as `llama/fused/paths.py` says them;
`path_forms` calls these kernels.

Each program has some rows (tokens) and columns of the large tensors, reads them once, and makes all
that is made of them with products of its tile and the thin factors. What must be summed over
programs is left in float32, a part for each, and added up by `sum_parts`: in one order, so that a
step gives the same numbers whenever it is taken. Those that make the factors' gradients, but for
the feed-forward's, are in `triton_path_gradients.py`.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportUnboundVariable=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from llama.kernels.triton_tiles import (
    dot,
    kept,
    product,
    put,
    rounded,
    sigmoid,
    staying,
    tile,
)


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
        x = tile(x_ptr, rows, columns, x_stride, tokens, width)
        x = kept(x, seed_ptr, rows, columns, least, DROP)
        first = dot(x, tl.trans(tile(a_0, ranks, columns, width, rank, width)), first)
        if COUNT > 1:
            second = dot(x, tl.trans(tile(a_1, ranks, columns, width, rank, width)), second)
        if COUNT > 2:
            third = dot(x, tl.trans(tile(a_2, ranks, columns, width, rank, width)), third)
    size = tokens * rank
    out = out_ptr + split.to(tl.int64) * COUNT * size
    put(out, first, rows, ranks, rank, tokens, rank)
    if COUNT > 1:
        put(out + size, second, rows, ranks, rank, tokens, rank)
    if COUNT > 2:
        put(out + 2 * size, third, rows, ranks, rank, tokens, rank)


@triton.jit
def _with_path(x, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind: tl.constexpr):
    """A tile of an output with what its adapter adds, rounded as it would be stored."""
    hidden = tile(hidden_ptr, rows, ranks, rank, tokens, rank)
    added = tl.dot(hidden, tl.trans(b), input_precision="ieee")
    return rounded(x + scale * added, kind)


@triton.jit
def add_tiles(
    y_ptr, x_ptr, hidden_ptr, b_ptr, tokens, width, rank, y_stride, x_stride, scale,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = y_ptr.dtype.element_ty
    b = tile(b_ptr, columns, ranks, rank, width, rank)
    y = tile(y_ptr, rows, columns, y_stride, tokens, width).to(tl.float32)
    y = _with_path(y, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
    x = tile(x_ptr, rows, columns, x_stride, tokens, width).to(tl.float32)
    put(y_ptr, x + y, rows, columns, y_stride, tokens, width)


@triton.jit
def gated_parts(
    gate_ptr, up_ptr, h_ptr, hidden_g, b_g, hidden_u, b_u, a_ptr, seed_ptr, out_ptr,
    tokens, width, rank, gate_stride, up_stride, scale_g, scale_u, least, steps,
    GATE: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = h_ptr.dtype.element_ty
    hidden = tl.zeros((ROWS, RANK), tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        columns = (split * steps + step) * COLUMNS + tl.arange(0, COLUMNS)
        gate = tile(gate_ptr, rows, columns, gate_stride, tokens, width).to(tl.float32)
        up = tile(up_ptr, rows, columns, up_stride, tokens, width).to(tl.float32)
        if GATE:
            b = tile(b_g, columns, ranks, rank, width, rank)
            gate = _with_path(gate, hidden_g, b, rows, ranks, tokens, rank, scale_g, kind)
        if UP:
            b = tile(b_u, columns, ranks, rank, width, rank)
            up = _with_path(up, hidden_u, b, rows, ranks, tokens, rank, scale_u, kind)
        h = (rounded(gate * sigmoid(gate), kind) * up).to(kind)
        put(h_ptr, h, rows, columns, width, tokens, width)
        if DOWN:
            a = tl.trans(tile(a_ptr, ranks, columns, width, rank, width))
            hidden = dot(kept(h, seed_ptr, rows, columns, least, DROP), a, hidden)
    if DOWN:
        out = out_ptr + split.to(tl.int64) * tokens * rank
        put(out, hidden, rows, ranks, rank, tokens, rank)


@triton.jit
def _added(total, added, stays, kept_scale, DROP: tl.constexpr):
    """`total` and the gradient to the input, where its mask has that stay."""
    if DROP:
        added = tl.where(stays, added * kept_scale, 0.0)
    return total + added


@triton.jit
def gated_backward_parts(
    grad_ptr, gate_ptr, up_ptr, hidden_g, b_g, hidden_u, b_u, down_ptr, a_ptr, seed_ptr, grad_a_ptr,
    tokens, width, rank, grad_stride, gate_stride, up_stride,
    scale_g, scale_u, least, kept_scale, steps,
    GATE: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, DROP: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    kind: tl.constexpr = gate_ptr.dtype.element_ty
    if GATE:
        gate_b = tile(b_g, columns, ranks, rank, width, rank)
    if UP:
        up_b = tile(b_u, columns, ranks, rank, width, rank)
    if DOWN:
        a = tile(a_ptr, ranks, columns, width, rank, width)
        grad_a = tl.zeros((RANK, COLUMNS), tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        rows = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        grad = tile(grad_ptr, rows, columns, grad_stride, tokens, width).to(tl.float32)
        gate = tile(gate_ptr, rows, columns, gate_stride, tokens, width).to(tl.float32)
        up = tile(up_ptr, rows, columns, up_stride, tokens, width).to(tl.float32)
        if GATE:
            gate = _with_path(gate, hidden_g, gate_b, rows, ranks, tokens, rank, scale_g, kind)
        if UP:
            up = _with_path(up, hidden_u, up_b, rows, ranks, tokens, rank, scale_u, kind)
        share = sigmoid(gate)
        silu = gate * share
        if DOWN:
            h = (rounded(silu, kind) * up).to(kind)
            stays = staying(seed_ptr, rows, columns, least) if DROP else True
            if DROP:
                h = tl.where(stays, h, 0.0).to(kind)
            part = tile(down_ptr, rows, ranks, rank, tokens, rank)
            grad_a = dot(tl.trans(part), h, grad_a)
            grad = _added(grad, product(part, a, ROWS, COLUMNS), stays, kept_scale, DROP)
        to_gate = grad * up * share * (1.0 + gate * (1.0 - share))
        put(gate_ptr, to_gate, rows, columns, gate_stride, tokens, width)
        put(up_ptr, silu * grad, rows, columns, up_stride, tokens, width)
    if DOWN:
        own = split.to(tl.int64) * width * rank
        put(grad_a_ptr + own, grad_a, ranks, columns, width, rank, width)


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
    first = tile(x_ptr, rows, columns, token_stride, tokens, half).to(tl.float32)
    second = tile(x_ptr + half, rows, columns, token_stride, tokens, half).to(tl.float32)
    if PATH:
        ranks = tl.arange(0, RANK)
        b_ptr += head * 2 * half * rank
        b = tile(b_ptr, columns, ranks, rank, half, rank)
        first = _with_path(first, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
        b = tile(b_ptr + half * rank, columns, ranks, rank, half, rank)
        second = _with_path(second, hidden_ptr, b, rows, ranks, tokens, rank, scale, kind)
    cos_1 = tile(cos_ptr, rows, columns, 2 * half, tokens, half).to(tl.float32)
    cos_2 = tile(cos_ptr + half, rows, columns, 2 * half, tokens, half).to(tl.float32)
    sin_1 = tile(sin_ptr, rows, columns, 2 * half, tokens, half).to(tl.float32)
    sin_2 = tile(sin_ptr + half, rows, columns, 2 * half, tokens, half).to(tl.float32)
    turned_1 = rounded(first * cos_1, kind) + second * sin_1
    turned_2 = rounded(second * cos_2, kind) + first * sin_2
    out = out_ptr + head * 2 * half
    put(out, turned_1, rows, columns, heads * 2 * half, tokens, half)
    put(out + half, turned_2, rows, columns, heads * 2 * half, tokens, half)
