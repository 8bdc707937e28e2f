"""The kernels of `triton_paths.py` as the functions of `llama/fused/paths.py` that they are forms
of: sizes of tiles, how many programs share a sum, and where each leaves its part.

Shapes: T tokens, I inputs, O outputs, F feed-forward width, R rank, H heads, E head_dim.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton

from llama.kernels.triton_paths import (
    add_tiles,
    gated_backward_parts,
    gated_parts,
    hidden_parts,
    input_parts,
    output_parts,
    rotate_tiles,
    sum_parts,
)

Tensors = tuple[torch.Tensor, ...]

LARGEST_RANK = 64
"""Above it a tile's sums no longer fit beside it in the registers: the functions are then taken as
they are written, operation by operation."""
_SUMMED = 16, 256
"""Parts that a program of `sum_parts` reads at a time, and how many elements of each it has."""


class Tile(NamedTuple):
    """How a kernel is cut up; measured on an H100 with 1024 and 8192 tokens."""

    rows: int
    columns: int
    warps: int
    programs: int = 1
    """That share a sum, over columns with rows of their own, or over rows: as many as a GPU of some
    hundred processors has at a time, and of the smaller ones several times as many."""
    stages: int = 3
    """Of its loop, that are under way at once."""

    def sizes(self, rank: int) -> dict[str, int]:
        """What the kernel is compiled for."""
        shape = {"ROWS": self.rows, "COLUMNS": self.columns, "RANK": _room(rank)}
        return {**shape, "num_warps": self.warps, "num_stages": self.stages}


ADDED = Tile(32, 128, 4)
HIDDEN = Tile(64, 64, 4, 256)
OUTPUT = Tile(64, 128, 4, 512, 2)
INPUT, INPUT_OF_SEVERAL = Tile(64, 64, 4, 1024), Tile(64, 64, 4, 1024, 2)
"""The second where several gradients to the input are added up."""
GATED, GATED_ALONE = Tile(64, 64, 4, 256), Tile(32, 128, 4, 256)
GATED_BACKWARD, GATED_BACKWARD_ALONE = Tile(16, 128, 4, 1024, 2), Tile(32, 128, 4, 512)
"""The second of both where no adapter takes part."""


def mask(p: float) -> tuple[int, float]:
    """The least product of keys that stays, and what is multiplied there."""
    return int(p * 2**32) - 2**31, 1.0 / (1.0 - p)


def dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy of it where its last dimension is not laid out side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _three(given: Tensors, filler: torch.Tensor) -> list[torch.Tensor]:
    """As many as the kernels take; those beyond `given` are not read."""
    assert len(given) <= 3
    return [*given, *[filler] * (3 - len(given))]


def _room(rank: int) -> int:
    """What the matrix units take for `rank`."""
    return max(16, triton.next_power_of_2(rank))


def _taking_part(paths: tuple[Tensors, Tensors], down: Tensors, p: float) -> dict[str, bool]:
    """Which adapters of a feed-forward there are, and whether they drop."""
    gate, up = map(bool, paths)
    return {"GATE": gate, "UP": up, "DOWN": bool(down), "DROP": p > 0}


def _share(size: int, step: int, others: int, programs: int) -> tuple[int, int]:
    """How many `step`s of `size` each of several programs takes, and how many they are, where
    `others` times as many make about `programs`."""
    steps = triton.cdiv(size, step)
    each = triton.cdiv(steps, min(steps, triton.cdiv(programs, others)))
    return each, triton.cdiv(steps, each)


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _summed(
    dtype: torch.dtype, factor: float, parts: torch.Tensor, more: torch.Tensor | None = None
) -> Tensors:
    """`factor` times the sum over dimension 0 of `parts`, and of `more`, in `dtype`."""
    given = parts, parts if more is None else more
    outs = tuple(torch.empty(x.shape[1:], dtype=dtype, device=x.device) for x in given)
    blocks = [triton.cdiv(out.numel(), _SUMMED[1]) for out in outs]
    sets = [(x, out, out.numel(), len(x)) for x, out in zip(given, outs, strict=True)]
    sum_parts[(sum(blocks) if more is not None else blocks[0],)](
        *(*sets[0], *sets[1], factor, blocks[0]), PARTS=_SUMMED[0], BLOCK=_SUMMED[1], num_warps=4
    )
    return outs if more is not None else outs[:1]


def _up_to_its_rank(form: Callable[..., Any], factors: Callable[..., Tensors]) -> Any:
    """`form`, or what says that the function is to be taken as it is written where the rank of the
    `factors` among its arguments is too large."""

    def call(*args: Any) -> Any:
        widest = max((min(x.shape) for x in factors(*args)), default=1)
        return form(*args) if widest <= LARGEST_RANK else NotImplemented

    return call


def add_with_path_(y: torch.Tensor, x: torch.Tensor, path: Tensors, scale: float) -> torch.Tensor:
    x = dense(x)
    assert y.stride(1) == 1
    (tokens, width), rank = y.shape, path[1].shape[1]
    tile = ADDED
    add_tiles[(triton.cdiv(tokens, tile.rows), triton.cdiv(width, tile.columns))](
        *(y, x, path[0].contiguous(), path[1].contiguous()),
        *(tokens, width, rank, y.stride(0), x.stride(0), scale),
        **tile.sizes(rank),
    )
    return y


def hidden_each(x: torch.Tensor, matrices: Tensors, seed: Tensors, p: float) -> Tensors:
    if len({a.shape for a in matrices}) > 1:
        each = (hidden_each(x, (a,), seed, p) for a in matrices)
        return tuple(found for (found,) in each)
    x = dense(x)
    (tokens, width), rank, count = x.shape, matrices[0].shape[0], len(matrices)
    tile = HIDDEN
    blocks = triton.cdiv(tokens, tile.rows)
    steps, splits = _share(width, tile.columns, blocks, tile.programs)
    parts = _empty(x, splits, count, tokens, rank)
    least, kept_scale = mask(p)
    hidden_parts[(blocks, splits)](
        *(x, *_three(tuple(a.contiguous() for a in matrices), x), *(seed or (x,)), parts),
        *(tokens, width, rank, x.stride(0), least, steps),
        COUNT=count,
        DROP=p > 0,
        **tile.sizes(rank),
    )
    return _summed(x.dtype, kept_scale, parts)[0].unbind(0)


def output_gradients(
    grad: torch.Tensor, hidden: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = dense(grad)
    (tokens, width), rank = grad.shape, b.shape[1]
    tile = OUTPUT
    blocks = triton.cdiv(width, tile.columns)
    steps, splits = _share(tokens, tile.rows, blocks, tile.programs)
    part, grad_b = _empty(grad, blocks, tokens, rank), _empty(grad, splits, width, rank)
    output_parts[(blocks, splits)](
        *(grad, hidden.contiguous(), b.contiguous(), part, grad_b),
        *(tokens, width, rank, grad.stride(0), steps),
        **tile.sizes(rank),
    )
    part, grad_b = _summed(grad.dtype, scale, part, grad_b)
    return part, grad_b


def input_gradients_(
    x: torch.Tensor,
    onto: Tensors,
    norm: Tensors,
    parts: Tensors,
    matrices: Tensors,
    seed: Tensors,
    p: float,
) -> Tensors:
    if len({a.shape for a in matrices}) > 1:
        found = []
        for part, a in zip(parts, matrices, strict=True):
            found.append(input_gradients_(x, onto, norm, (part,), (a,), seed, p)[-1])
            onto = onto[:1]
        return *onto, *found
    x = dense(x)
    (tokens, width), rank, count = x.shape, matrices[0].shape[0], len(matrices)
    tile = INPUT_OF_SEVERAL if len(onto) > 1 else INPUT
    blocks = triton.cdiv(width, tile.columns)
    steps, splits = _share(tokens, tile.rows, blocks, tile.programs)
    grad_a = _empty(x, splits, count, rank, width)
    least, kept_scale = mask(p)
    target, *others = onto or (x,)
    assert target.stride(1) == 1
    others = _three(tuple(other.contiguous() for other in others), x)[:2]
    input_parts[(blocks, splits)](
        *(x, *(norm or (x, x)), target),
        *_three(tuple(part.contiguous() for part in parts), x),
        *(*_three(tuple(a.contiguous() for a in matrices), x), *(seed or (x,)), grad_a, *others),
        *(tokens, width, rank, x.stride(0), target.stride(0), least, kept_scale, steps),
        COUNT=count,
        NORM=bool(norm),
        ONTO=len(onto),
        DROP=p > 0,
        **tile.sizes(rank),
    )
    return *onto[:1], *_summed(x.dtype, kept_scale, grad_a)[0].unbind(0)


def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Tensors, Tensors],
    scales: tuple[float, float],
    down: Tensors,
    seed: Tensors,
    p: float,
) -> Tensors:
    gate, up = dense(gate), dense(up)
    tokens, width = gate.shape
    rank = _rank(paths, down)
    tile = GATED if any(paths) or down else GATED_ALONE
    blocks = triton.cdiv(tokens, tile.rows)
    steps, splits = _share(width, tile.columns, blocks, tile.programs)
    h = torch.empty((tokens, width), dtype=gate.dtype, device=gate.device)
    parts = _empty(gate, splits, tokens, rank) if down else h
    least, kept_scale = mask(p)
    gated_parts[(blocks, splits)](
        *(gate, up, h, *(paths[0] or (h, h)), *(paths[1] or (h, h))),
        *(down[0].contiguous() if down else h, *(seed or (h,)), parts),
        *(tokens, width, rank, gate.stride(0), up.stride(0), *scales, least, steps),
        **_taking_part(paths, down, p),
        **tile.sizes(rank),
    )
    return (h, *_summed(h.dtype, kept_scale, parts)) if down else (h,)


def gated_backward_(
    grad: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Tensors, Tensors],
    scales: tuple[float, float],
    down: Tensors,
    seed: Tensors,
    p: float,
) -> Tensors:
    grad = dense(grad)
    assert gate.stride(1) == up.stride(1) == 1
    tokens, width = gate.shape
    rank = _rank(paths, down[1:])
    tile = GATED_BACKWARD if any(paths) or down else GATED_BACKWARD_ALONE
    blocks = triton.cdiv(width, tile.columns)
    steps, splits = _share(tokens, tile.rows, blocks, tile.programs)
    grad_a = _empty(gate, splits, rank, width) if down else gate
    least, kept_scale = mask(p)
    filler = gate, gate
    gated_backward_parts[(blocks, splits)](
        *(grad, gate, up, *(paths[0] or filler), *(paths[1] or filler)),
        *(*(x.contiguous() for x in down or filler), *(seed or (gate,))),
        *(grad_a, tokens, width, rank),
        *(grad.stride(0), gate.stride(0), up.stride(0), *scales, least, kept_scale, steps),
        **_taking_part(paths, down, p),
        **tile.sizes(rank),
    )
    return gate, up, *(_summed(gate.dtype, kept_scale, grad_a) if down else ())


def _rank(paths: tuple[Tensors, Tensors], down: Tensors) -> int:
    """The one rank of those that are there. Under `--lora.targets` all layers of a run have one."""
    ranks = {path[1].shape[1] for path in paths if path} | {a.shape[0] for a in down}
    assert len(ranks) <= 1, "adapters of a feed-forward of unlike ranks"
    return ranks.pop() if ranks else 1


def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    path: Tensors = (),
    scale: float = 1.0,
) -> torch.Tensor:
    x = dense(x)
    tokens, heads, width = x.shape
    out = torch.empty((tokens, heads, width), dtype=x.dtype, device=x.device)
    rank = path[1].shape[1] if path else 1
    half = triton.next_power_of_2(width // 2)
    rows = max(16, 2048 // half)
    rotate_tiles[(triton.cdiv(tokens, rows), heads)](
        *(x, cos.contiguous(), signed_sin.contiguous(), out, *(path or (x, x))),
        *(tokens, heads, width // 2, x.stride(0), x.stride(1), rank, scale),
        PATH=bool(path),
        RANK=_room(rank),
        ROWS=rows,
        HALF=max(16, half),
    )
    return out


def rotate_both(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    paths: tuple[Tensors, Tensors] = ((), ()),
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        rotate(q, cos, signed_sin, paths[0], scales[0]),
        rotate(k, cos, signed_sin, paths[1], scales[1]),
    )


def _of_gated(*args: Any) -> Tensors:
    paths, down = args[-5], args[-3]
    return *(path[1] for path in paths if path), *down[-1:]


def _of_rotated(*args: Any) -> Tensors:
    return tuple(path[1] for path in args[4] if path) if len(args) > 4 else ()


PATH_FORMS: Mapping[str, Callable[..., Any]] = {
    "add_with_path_": _up_to_its_rank(add_with_path_, lambda *args: args[2][1:]),
    "gated": _up_to_its_rank(gated, _of_gated),
    "gated_backward_": _up_to_its_rank(gated_backward_, _of_gated),
    "hidden_each": _up_to_its_rank(hidden_each, lambda *args: args[1]),
    "input_gradients_": _up_to_its_rank(input_gradients_, lambda *args: args[4]),
    "output_gradients": _up_to_its_rank(output_gradients, lambda *args: args[2:3]),
    "rotate": rotate,
    "rotate_both": _up_to_its_rank(rotate_both, _of_rotated),
}
"""By the name of the function that each is a form of, without a leading underscore."""
