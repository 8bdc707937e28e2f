"""The low-rank paths of a fused block's adapters, each function one kernel, once compiled.

An adapter adds `scale (m x / (1 - p)) A^T B^T` to a layer's output, `m` the mask of its dropout.
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


def _under_mask(x: torch.Tensor, seeds: Path, number: int, p: float) -> torch.Tensor:
    return dropped(x, seeds[number], p) if p else x


@kernel
def hidden_each(x: torch.Tensor, matrices: Path, seeds: Path, p: float) -> tuple[torch.Tensor, ...]:
    """`(m x / (1 - p)) A^T`, `[T, R]`, of each A, `[R, I]`, in `matrices`, under the mask of its
    seed; without seeds where `p` is 0."""
    return tuple(_under_mask(x, seeds, n, p) @ a.t() for n, a in enumerate(matrices))


@kernel
def output_gradients(
    grad: torch.Tensor, hidden: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the gradient of an output, `[T, O]`: those of the adapter's `A x`, `[T, R]`, and of its
    B, `[O, R]`."""
    return (grad @ b).mul_(scale), (grad.t() @ hidden).mul_(scale)


@kernel
def input_gradients_(
    x: torch.Tensor, onto: Path, norm: Path, parts: Path, matrices: Path, seeds: Path, p: float
) -> tuple[torch.Tensor, ...]:
    """From the gradients `parts` of `A x` of adapters with one input: to each A, `[R, I]`. The sum
    of those to the input is added to the one tensor of `onto`, if it is there, in place, and that
    comes first. The input is `x`, or with `norm`, a scale for each token and the weight, the norm
    of `x`."""
    total = onto[0].float() if onto else None
    if norm:
        x = (x.float() * norm[0]).to(x.dtype) * norm[1].to(x.dtype)
    found = []
    for number, (part, a) in enumerate(zip(parts, matrices, strict=True)):
        found.append(part.t() @ _under_mask(x, seeds, number, p))
        if total is not None:
            total = total + _under_mask((part @ a).float(), seeds, number, p)
    if total is not None:
        onto[0].copy_(total)
    return *onto, *found


@kernel
def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Path, Path],
    scales: tuple[float, float],
    down: Path,
    seeds: Path,
    p: float,
) -> tuple[torch.Tensor, ...]:
    """SwiGLU of `gate` and `up`, `[T, F]`, with what their adapters add; and as `hidden_each` what
    the adapter of the layer after it, whose A is in `down` if there is one, makes of that."""
    h = formulas.swiglu(with_path(gate, paths[0], scales[0]), with_path(up, paths[1], scales[1]))
    return h, *(_under_mask(h, seeds, n, p) @ a.t() for n, a in enumerate(down))


@kernel
def gated_backward_(
    grad: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    paths: tuple[Path, Path],
    scales: tuple[float, float],
    down: Path,
    seeds: Path,
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
        found = (part.t() @ _under_mask(formulas.swiglu(wide_gate, wide_up), seeds, 0, p),)
        total = total + _under_mask((part @ a).float(), seeds, 0, p)
    grads = formulas.swiglu_backward(total, wide_gate.float(), wide_up.float())
    return gate.copy_(grads[0]), up.copy_(grads[1]), *found
