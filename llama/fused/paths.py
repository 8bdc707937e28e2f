"""The low-rank paths of a fused block's adapters, each function one kernel, once compiled.

An adapter adds `scale (m x / (1 - p)) A^T B^T` to a layer's output, `m` the mask of its dropout,
which is one for all layers that read `x`.
Its factors are thin, so that what it costs is to read and write what it is multiplied by: each of
these functions reads its large operands once, for all that is made of them. No mask, no dropped
input and no path is ever stored; a mask is found again from its seed (`llama/parallel/dropout.py`).

Shapes: T tokens, I inputs, O outputs, F feed-forward width, R rank.
"""

from __future__ import annotations

import torch

from llama.kernels import formulas
from llama.kernels.compiled import kernel
from llama.parallel.dropout import dropped

Path = tuple[torch.Tensor, ...]
"""What an adapter adds to an output: its `A x`, `[T, R]`, and its B, `[O, R]`; empty without one.
"""


def with_path(y_TO: torch.Tensor, path: Path, scale: float) -> torch.Tensor:
    """`y + scale (A x) B^T`, in the type of `y`."""
    return torch.addmm(y_TO, path[0], path[1].t(), alpha=scale) if path else y_TO


@kernel
def add_with_path_(
    y_TO: torch.Tensor, x_TO: torch.Tensor, path: Path, scale: float
) -> torch.Tensor:
    """`x`, `y` and what the adapter adds to `y`, summed in the place of `y`."""
    return y_TO.copy_(x_TO + with_path(y_TO, path, scale))


def _under_mask(x: torch.Tensor, seed: Path, p: float, row: int = 0) -> torch.Tensor:
    """`x`, which begins with that row of the mask."""
    return dropped(x, seed[0], p, (row, 0)) if p else x


@kernel
def hidden_each(x: torch.Tensor, matrices: Path, seed: Path, p: float) -> tuple[torch.Tensor, ...]:
    """`(m x / (1 - p)) A^T`, `[T, R]`, of each A, `[R, I]`, in `matrices`, all under the mask of
    the one seed; without a seed where `p` is 0."""
    kept = _under_mask(x, seed, p)
    return tuple(kept @ a.t() for a in matrices)


@kernel
def output_gradients(
    grads: Path, hidden: Path, b: Path, scales: tuple[float, ...]
) -> tuple[Path, Path]:
    """From the gradients of the outputs, `[T, O]`, of layers with an adapter each: those of the
    adapters' `A x`, `[T, R]`, and those of their B, `[O, R]`."""
    parts, grads_b = [], []
    for grad, of_a, own_b, scale in zip(grads, hidden, b, scales, strict=True):
        parts.append((grad @ own_b).mul_(scale))
        grads_b.append((grad.t() @ of_a).mul_(scale))
    return tuple(parts), tuple(grads_b)


@kernel
def input_gradients_(
    x: torch.Tensor,
    onto: Path,
    norm: Path,
    parts: Path,
    matrices: Path,
    seed: Path,
    p: float,
    row: int = 0,
) -> tuple[torch.Tensor, ...]:
    """From the gradients `parts` of `A x` of adapters with one input: to each A, `[R, I]`. Where
    there is an `onto`, the sum of those to the input and of all that is in it takes the place of
    its first tensor, and that comes first. The input is `x`, or with `norm`, a scale for each token
    and the weight, the norm of `x`; it begins with that `row` of the mask."""
    if norm:
        x = (x.float() * norm[0]).to(x.dtype) * norm[1].to(x.dtype)
    kept = _under_mask(x, seed, p, row)
    if onto:
        added = [(part @ a).float() for part, a in zip(parts, matrices, strict=True)]
        total = _under_mask(sum(added[1:], start=added[0]), seed, p, row)
        onto[0].copy_(sum((other.float() for other in onto), start=total))
    return *onto[:1], *(part.t() @ kept for part in parts)


@kernel
def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Path, Path],
    scales: tuple[float, float],
    down: Path,
    seed: Path,
    p: float,
) -> tuple[torch.Tensor, ...]:
    """SwiGLU of `gate` and `up`, `[T, F]`, with what their adapters add; and as `hidden_each` what
    the adapter of the layer after it, whose A is in `down` if there is one, makes of that."""
    h = formulas.swiglu(with_path(gate, paths[0], scales[0]), with_path(up, paths[1], scales[1]))
    return h, *(_under_mask(h, seed, p) @ a.t() for a in down)


@kernel
def gated_backward_(
    grad: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Path, Path],
    scales: tuple[float, float],
    down: Path,
    seed: Path,
    p: float,
) -> tuple[torch.Tensor, ...]:
    """Back through `gated`, from the gradient that came through the frozen weight after it, and,
    where `down` is not empty, the gradient of its adapter's `A x`, with A: the gradients to gate
    and up, in their place (they are the largest tensors of a block, and nothing reads them again),
    and the one to the A of `down`. All in float32 but for what is given and what comes out."""
    wide_gate, wide_up = (
        with_path(x, path, scale) for x, path, scale in zip((gate, up), paths, scales, strict=True)
    )
    total, found = grad.float(), ()
    if down:
        part, a = down
        found = (part.t() @ _under_mask(formulas.swiglu(wide_gate, wide_up), seed, p),)
        total = total + _under_mask((part @ a).float(), seed, p)
    grads = formulas.swiglu_backward(total, wide_gate.float(), wide_up.float())
    return gate.copy_(grads[0]), up.copy_(grads[1]), *found
