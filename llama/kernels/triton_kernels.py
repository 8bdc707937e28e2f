"""The element-wise kernels of a GPU in Triton. `triton_forms` calls them.

Arithmetic is in float32, rounded to the type of the tensors where the functions round that they are
forms of. A program has one row of a tensor, or some columns of it.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _keys(places, low, high):
    n = (places ^ low) * -1640531527 + high
    n = (n ^ ((n >> 16) & 0xFFFF)) * 0x7FEB352D
    n = (n ^ ((n >> 15) & 0x1FFFF)) * -2073254261
    return (n ^ ((n >> 16) & 0xFFFF)) | 1


@triton.jit
def row_keys(seed_ptr, rows):
    """Of the mask of a seed, what `dropout.keep_mask` multiplies by the keys of columns."""
    number, place = tl.load(seed_ptr), tl.load(seed_ptr + 1)
    return _keys(rows + place.to(tl.int32), number.to(tl.int32), (number >> 32).to(tl.int32))


@triton.jit
def column_keys(seed_ptr, columns):
    """See `row_keys`."""
    number, place = tl.load(seed_ptr), tl.load(seed_ptr + 1)
    return _keys(
        columns + (place >> 32).to(tl.int32), (number >> 32).to(tl.int32), number.to(tl.int32)
    )


@triton.jit
def _shares(share_0, share_1, places, inside, COUNT: tl.constexpr):
    """The sum of one or of two, the second of which may lie in another GPU's memory."""
    total = tl.load(share_0 + places, mask=inside, other=0.0).to(tl.float32)
    if COUNT > 1:
        total += tl.load(share_1 + places, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def added_columns(
    x_ptr, share_0, share_1, out_ptr, width, x_stride, stride_0, stride_1,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    x += _shares(share_0 + row * stride_0, share_1 + row * stride_1, columns, inside, COUNT)
    tl.store(out_ptr + row * width + columns, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_rows(
    x_ptr, share_0, share_1, weight_ptr, total_ptr, y_ptr, scale_ptr,
    width, x_stride, stride_0, stride_1, eps, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    kind = y_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if COUNT:
        shares = _shares(share_0 + row * stride_0, share_1 + row * stride_1, columns, inside, COUNT)
        total = (x + shares).to(kind)
        tl.store(total_ptr + row * width + columns, total, mask=inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(kind).to(tl.float32)
    y = ((x * scale).to(kind).to(tl.float32) * weight).to(kind)
    tl.store(y_ptr + row * width + columns, y, mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def norm_backward_rows(
    residual_ptr, grad_0, grad_1, x_ptr, weight_ptr, scale_ptr, out_ptr,
    width, residual_stride, stride_0, stride_1, x_stride, eps,
    COUNT: tl.constexpr, RESIDUAL: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    grad = _shares(grad_0 + row * stride_0, grad_1 + row * stride_1, columns, inside, COUNT)
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        scale = tl.load(scale_ptr + row)
    else:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    grad = grad * weight
    dot = tl.sum(grad * x, axis=0) / width
    through = grad * scale - x * (dot * scale * scale * scale)
    if RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0)
        through += residual.to(tl.float32)
    tl.store(out_ptr + row * width + columns, through.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dropped_columns(
    x_ptr, seed_ptr, out_ptr, width, x_stride, first_row, first_column, least, kept_scale,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    keys = column_keys(seed_ptr, columns + first_column)
    stays = row_keys(seed_ptr, row.to(tl.int32) + first_row) * keys >= least
    kept = tl.where(stays, x * kept_scale, 0.0)
    tl.store(out_ptr + row * width + columns, kept.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_columns(gate_ptr, up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    kind = out_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out_ptr + places, (silu * up).to(kind), mask=inside)


@triton.jit
def swiglu_backward_columns(
    grad_ptr, gate_ptr, up_ptr, to_gate_ptr, to_up_ptr, size, BLOCK: tl.constexpr
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    kind = to_gate_ptr.dtype.element_ty
    grad = tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    to_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(to_gate_ptr + places, to_gate.to(kind), mask=inside)
    tl.store(to_up_ptr + places, (gate * sigmoid * grad).to(kind), mask=inside)


@triton.jit
def _exponentials(logits, vocabulary: tl.constexpr, BLOCK: tl.constexpr):
    """Of a row the largest of the logits, and the sum of their exponentials over its own."""
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        found = tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf"))
        found = found.to(tl.float32)
        larger = tl.maximum(largest, tl.max(found, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(found - larger), axis=0)
        largest = larger
    return largest, total


@triton.jit
def shard_statistics_rows(
    logits_ptr, labels_ptr, out_ptr, logits_stride, vocabulary: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    logits = logits_ptr + row * logits_stride
    largest, total = _exponentials(logits, vocabulary, BLOCK)
    inside = (label >= 0) & (label < vocabulary)
    own = tl.load(logits + tl.where(inside, label, 0)).to(tl.float32)
    tl.store(out_ptr + 3 * row, largest)
    tl.store(out_ptr + 3 * row + 1, total)
    tl.store(out_ptr + 3 * row + 2, tl.where(inside, own, 0.0))


@triton.jit
def shard_gradient_columns(
    logits_ptr, labels_ptr, normaliser_ptr, out_ptr, logits_stride, vocabulary, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    label, normaliser = tl.load(labels_ptr + row), tl.load(normaliser_ptr + row)
    found = tl.load(logits_ptr + row * logits_stride + columns, mask=inside, other=float("-inf"))
    gradient = tl.exp(found.to(tl.float32) - normaliser) - tl.where(columns == label, 1.0, 0.0)
    gradient = gradient.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * vocabulary + columns, gradient, mask=inside)


@triton.jit
def losses_rows(
    logits_ptr, labels_ptr, losses_ptr, out_ptr, logits_stride,
    vocabulary: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    logits = logits_ptr + row * logits_stride
    largest, total = _exponentials(logits, vocabulary, BLOCK)
    normaliser = tl.log(total) + largest
    counts = label >= 0
    own = tl.load(logits + tl.where(counts, label, 0)).to(tl.float32)
    tl.store(losses_ptr + row, tl.where(counts, normaliser - own, 0.0))
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        found = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(found - normaliser) - tl.where(columns == label, 1.0, 0.0)
        gradient = tl.where(counts, gradient, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * vocabulary + columns, gradient, mask=inside)
