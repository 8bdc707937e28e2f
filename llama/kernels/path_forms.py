"""The kernels of `triton_paths.py` as the functions of `llama/fused/paths.py` that they are forms
of; those of gradients alone are in `path_gradient_forms.py`.

Shapes: T tokens, I inputs, O outputs, F feed-forward width, R rank, H heads, E head_dim.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from llama.kernels.path_gradient_forms import input_gradients_, output_gradients
from llama.kernels.path_tiles import (
    FEW,
    LARGEST_RANK,
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
from llama.kernels.triton_paths import (
    add_tiles,
    gated_backward_parts,
    gated_parts,
    hidden_parts,
    rotate_tiles,
)

ADDED = Tile(32, 128, 4)
HIDDEN, HIDDEN_OF_FEW = Tile(64, 128, 4, 256), Tile(64, 128, 4, 128)
GATED, GATED_OF_FEW = Tile(64, 64, 4, 1024), Tile(64, 64, 4, 256)
GATED_NARROW = Tile(64, 32, 4, 1024, 2)
"""For numbers of more bytes and for larger ranks, which take more shared memory than smaller GPUs
have."""
GATED_ALONE = Tile(32, 128, 4, 256)
GATED_BACKWARD, GATED_BACKWARD_ALONE = Tile(16, 256, 4, 512), Tile(32, 128, 4, 512)
"""Both `ALONE` where no adapter takes part."""


def _taking_part(paths: tuple[Tensors, Tensors], down: Tensors, p: float) -> dict[str, bool]:
    """Which adapters of a feed-forward there are, and whether they drop."""
    gate, up = map(bool, paths)
    return {"GATE": gate, "UP": up, "DOWN": bool(down), "DROP": p > 0}


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


def _hidden_tile(x: torch.Tensor, rank: int) -> Tile:
    """Narrower where numbers have more bytes, and where ranks are larger: a tile of each A lies in
    shared memory beside that of `x`."""
    return (HIDDEN if len(x) > FEW else HIDDEN_OF_FEW).narrowed(x, rank, least=64)


def hidden_each(x: torch.Tensor, matrices: Tensors, seed: Tensors, p: float) -> Tensors:
    if len({a.shape for a in matrices}) > 1:
        each = (hidden_each(x, (a,), seed, p) for a in matrices)
        return tuple(found for (found,) in each)
    x = dense(x)
    (tokens, width), rank, count = x.shape, matrices[0].shape[0], len(matrices)
    tile = _hidden_tile(x, rank)
    blocks = triton.cdiv(tokens, tile.rows)
    steps, splits = share(width, tile.columns, blocks, tile.programs)
    parts = empty(x, splits, count, tokens, rank)
    least, kept_scale = mask(p)
    hidden_parts[(blocks, splits)](
        *(x, *three(tuple(a.contiguous() for a in matrices), x), *(seed or (x,)), parts),
        *(tokens, width, rank, x.stride(0), least, steps),
        COUNT=count,
        DROP=p > 0,
        **tile.sizes(rank),
    )
    return summed(x.dtype, kept_scale, parts).unbind(0)


def _gated_tile(gate: torch.Tensor, rank: int) -> Tile:
    if gate.element_size() > 2 or room(rank) > 32:
        return GATED_NARROW
    return GATED if len(gate) > FEW else GATED_OF_FEW


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
    tile = _gated_tile(gate, rank) if any(paths) or down else GATED_ALONE
    blocks = triton.cdiv(tokens, tile.rows)
    steps, splits = share(width, tile.columns, blocks, tile.programs)
    h = torch.empty((tokens, width), dtype=gate.dtype, device=gate.device)
    parts = empty(gate, splits, tokens, rank) if down else h
    least, kept_scale = mask(p)
    gated_parts[(blocks, splits)](
        *(gate, up, h, *(paths[0] or (h, h)), *(paths[1] or (h, h))),
        *(down[0].contiguous() if down else h, *(seed or (h,)), parts),
        *(tokens, width, rank, gate.stride(0), up.stride(0), *scales, least, steps),
        **_taking_part(paths, down, p),
        STAGES=tile.stages,
        **tile.sizes(rank),
    )
    return (h, summed(h.dtype, kept_scale, parts)) if down else (h,)


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
    adapted = any(paths) or down
    tile = GATED_BACKWARD.narrowed(gate, rank) if adapted else GATED_BACKWARD_ALONE
    blocks = triton.cdiv(width, tile.columns)
    steps, splits = share(tokens, tile.rows, blocks, tile.programs)
    grad_a = empty(gate, splits, rank, width) if down else gate
    least, kept_scale = mask(p)
    filler = gate, gate
    gated_backward_parts[(blocks, splits)](
        *(grad, gate, up, *(paths[0] or filler), *(paths[1] or filler)),
        *(*(x.contiguous() for x in down or filler), *(seed or (gate,))),
        *(grad_a, tokens, width, rank),
        *(grad.stride(0), gate.stride(0), up.stride(0), *scales, least, kept_scale, steps),
        **_taking_part(paths, down, p),
        STAGES=tile.stages,
        **tile.sizes(rank),
    )
    return gate, up, *((summed(gate.dtype, kept_scale, grad_a),) if down else ())


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
        RANK=room(rank),
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
    "output_gradients": _up_to_its_rank(output_gradients, lambda *args: args[2]),
    "rotate": rotate,
    "rotate_both": _up_to_its_rank(rotate_both, _of_rotated),
}
"""By the name of the function that each is a form of, without a leading underscore."""
