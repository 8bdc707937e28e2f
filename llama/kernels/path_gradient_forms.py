"""The kernels of `triton_path_gradients.py` as the functions of `llama/fused/paths.py` that they
are forms of.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import torch
import triton

from llama.kernels.path_tiles import (
    FEW,
    MOST_LAYERS,
    SUMMED,
    Tensors,
    Tile,
    dense,
    empty,
    mask,
    room,
    share,
    summed,
    three,
)
from llama.kernels.triton_path_gradients import input_parts, output_parts, sum_output_parts

OUTPUT, OUTPUT_OF_FEW = Tile(32, 512, 4, 264), Tile(64, 128, 4, 528)
"""The first where the gradients are so large that all programs have several steps to take. A part
of the gradient to `A x` is left by each tile's columns: the wider they are, the fewer there are."""
INPUT = Tile(64, 64, 4, 512, 2)
INPUT_DROPPED, INPUT_DROPPED_OF_FEW = Tile(32, 128, 4, 256), Tile(64, 64, 4, 512)
"""Under a mask, up to `DROPPED_RANK` and of numbers of two bytes: more stages of larger ranks take
more shared memory than smaller GPUs have."""
DROPPED_RANK = 32


def _output_tile(grads: Tensors, rank: int) -> Tile:
    """For gradients of one number of tokens. Numbers of more bytes and larger ranks, whose sums
    take more registers, have narrower tiles."""
    tile = OUTPUT.narrowed(grads[0], rank)
    blocks = sum(triton.cdiv(grad.shape[1], tile.columns) for grad in grads)
    steps = blocks * triton.cdiv(len(grads[0]), OUTPUT.rows)
    if steps >= 4 * OUTPUT.programs:
        return tile
    wide = grads[0].element_size() * room(rank) > 128  # more than smaller GPUs' shared memory
    return OUTPUT_OF_FEW._replace(stages=2) if wide else OUTPUT_OF_FEW


def output_gradients(
    grads: Tensors, hidden: Tensors, b: Tensors, scales: tuple[float, ...]
) -> tuple[Tensors, Tensors]:
    if len(b) > MOST_LAYERS or len({x.shape[1] for x in b}) > 1:
        layers = zip(grads, hidden, b, scales, strict=True)
        each = [output_gradients(*((given,) for given in layer)) for layer in layers]
        return tuple(part for (part,), _ in each), tuple(grad_b for _, (grad_b,) in each)
    grads = tuple(map(dense, grads))
    (tokens, rank), count = hidden[0].shape, len(grads)
    widths = [grad.shape[1] for grad in grads]
    tile = _output_tile(grads, rank)
    blocks = [triton.cdiv(width, tile.columns) for width in widths]
    steps, splits = share(tokens, tile.rows, sum(blocks), tile.programs)
    part = empty(grads[0], sum(blocks), tokens, rank)
    grad_b = empty(grads[0], splits, sum(widths), rank)
    output_parts[(sum(blocks), splits)](
        *three(grads, grads[0]),
        *three([x.contiguous() for x in hidden], hidden[0]),
        *three([x.contiguous() for x in b], b[0]),
        *(part, grad_b, *three(widths, 0), *three([x.stride(0) for x in grads], 0)),
        *(*three(scales, 1.0), tokens, rank, steps),
        COUNT=count,
        **tile.sizes(rank),
    )
    return _output_sums(grads[0].dtype, part, grad_b, blocks, widths)


def _output_sums(
    dtype: torch.dtype,
    part: torch.Tensor,
    grad_b: torch.Tensor,
    blocks: list[int],
    widths: list[int],
) -> tuple[Tensors, Tensors]:
    """Of layers that left so many `blocks` in `part` and have so many rows of `grad_b`."""
    (_, tokens, rank), (splits, every, _), count = part.shape, grad_b.shape, len(blocks)
    parts = torch.empty((count, tokens, rank), dtype=dtype, device=part.device)
    grads_b = torch.empty((every, rank), dtype=dtype, device=part.device)
    each, block = SUMMED
    programs = triton.cdiv(tokens * rank, block)
    sum_output_parts[(count * programs + triton.cdiv(every * rank, block),)](
        *(part, parts, grad_b, grads_b, tokens * rank, *three(blocks, 0)),
        *(programs, every * rank, splits),
        COUNT=count,
        PARTS=each,
        BLOCK=block,
        num_warps=4,
    )
    return parts.unbind(0), grads_b.split(widths)


def _input_tile(x: torch.Tensor, rank: int, p: float) -> Tile:
    if not p or room(rank) > DROPPED_RANK or x.element_size() > 2:
        return INPUT
    return INPUT_DROPPED if len(x) > FEW else INPUT_DROPPED_OF_FEW


def input_gradients_(
    x: torch.Tensor,
    onto: Tensors,
    norm: Tensors,
    parts: Tensors,
    matrices: Tensors,
    seed: Tensors,
    p: float,
    row: int = 0,
) -> Tensors:
    if len({a.shape for a in matrices}) > 1:
        found = []
        for part, a in zip(parts, matrices, strict=True):
            found.append(input_gradients_(x, onto, norm, (part,), (a,), seed, p, row)[-1])
            onto = onto[:1]
        return *onto, *found
    x = dense(x)
    (tokens, width), rank, count = x.shape, matrices[0].shape[0], len(matrices)
    tile = _input_tile(x, rank, p)
    blocks = triton.cdiv(width, tile.columns)
    steps, splits = share(tokens, tile.rows, blocks, tile.programs)
    grad_a = empty(x, splits, count, rank, width)
    least, kept_scale = mask(p)
    target, *others = onto or (x,)
    assert target.stride(1) == 1
    others = three(tuple(other.contiguous() for other in others), x)[:2]
    input_parts[(blocks, splits)](
        *(x, *(norm or (x, x)), target),
        *three(tuple(part.contiguous() for part in parts), x),
        *(*three(tuple(a.contiguous() for a in matrices), x), *(seed or (x,)), grad_a, *others),
        *(tokens, width, rank, x.stride(0), target.stride(0), row, least, kept_scale, steps),
        COUNT=count,
        NORM=bool(norm),
        ONTO=len(onto),
        DROP=p > 0,
        STAGES=tile.stages,
        **tile.sizes(rank),
    )
    return *onto[:1], *summed(x.dtype, kept_scale, grad_a).unbind(0)
