"""The kernels of a GPU by the functions that they are forms of: each computes what the function of
its name, written with torch's operations, says (`elementwise.py`, `llama/fused/kernels.py`,
`llama/parallel/dropout.py`, `llama/model/loss.py`); those of `eight_bits.py` stand in
`triton_eight_bits.py`.

Compiled at the first call in a process, a second each at most, and kept on the disk by Triton for
the next one.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim, V vocabulary, n positions.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import triton

from llama.kernels import triton_eight_bits
from llama.kernels.triton_kernels import (
    dropped_columns,
    losses_rows,
    norm_backward_rows,
    norm_rows,
    rotate_heads,
    swiglu_backward_columns,
    swiglu_columns,
)

_COLUMNS = 1024
"""Of a row that several programs share."""
_VOCABULARY = 4096
"""Logits that a program holds at a time."""


def _dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy of it where its last dimension is not laid out side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _three(given: tuple[torch.Tensor, ...], filler: torch.Tensor) -> list[torch.Tensor]:
    """As many as the kernels take; those beyond `given` are not read."""
    assert len(given) <= 3
    return [*given, *[filler] * (3 - len(given))]


def _mask(p: float) -> tuple[int, float]:
    """Which hashes stay, and what they are multiplied by."""
    return int(p * 2**31), 1.0 / (1.0 - p)


def _normed(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    update: torch.Tensor | None = None,
    seeds: tuple[torch.Tensor, ...] = (),
    p: float = 0.0,
    y_too: bool = True,
    scale_too: bool = False,
) -> tuple[Any, ...]:
    """The sum with `update`, the norm, its scale, and the norm under each mask; of the first three
    those that were asked for mean something."""
    x = _dense(x)
    rows, width = x.shape
    y = torch.empty((rows, width), dtype=x.dtype, device=x.device) if y_too else x
    total = torch.empty((rows, width), dtype=x.dtype, device=x.device) if update is not None else x
    update = x if update is None else _dense(update)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device) if scale_too else x
    outs = tuple(torch.empty((rows, width), dtype=x.dtype, device=x.device) for _ in seeds)
    block = triton.next_power_of_2(width)
    norm_rows[(rows,)](
        *(x, update, weight, total, y, scale),
        *(*_three(seeds, weight), *_three(outs, y)),
        *(width, x.stride(0), update.stride(0), eps, *_mask(p)),
        ADD=update is not x,
        WRITE_Y=y_too,
        WRITE_SCALE=scale_too,
        SEEDS=len(seeds),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return total, y, scale, outs


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _normed(x, weight, eps)[1]


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    _, y, scale, _ = _normed(x, weight, eps, scale_too=True)
    return y, scale


def norm_dropped(
    x: torch.Tensor, weight: torch.Tensor, eps: float, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    _, y, _, outs = _normed(x, weight, eps, seeds=seeds, p=p)
    return y, *outs


def only_norm_dropped(
    x: torch.Tensor, weight: torch.Tensor, eps: float, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    return _normed(x, weight, eps, seeds=seeds, p=p, y_too=False)[3]


def add_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total, y, _, _ = _normed(x, weight, eps, update)
    return total, y


def _through_norm(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    paths: tuple[torch.Tensor, ...] = (),
    seeds: tuple[torch.Tensor, ...] = (),
    p: float = 0.0,
) -> torch.Tensor:
    """The gradient to `x`, and `residual` with it; the norm's scale is given or found by `eps`."""
    grad, x = _dense(grad), _dense(x)
    before = x if residual is None else _dense(residual)
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    norm_backward_rows[(rows,)](
        *(before, grad, x, weight, x if scale is None else scale, out),
        *_three(tuple(path.contiguous() for path in paths), x),
        *_three(seeds, weight),
        *(width, before.stride(0), grad.stride(0), x.stride(0), eps, *_mask(p)),
        RESIDUAL=residual is not None,
        SCALE=scale is not None,
        PATHS=len(paths),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out


def norm_backward(
    residual: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    return _through_norm(grad, x, weight, eps, residual)


def norm_backward_dropped(
    residual: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    paths: tuple[torch.Tensor, ...],
    seeds: tuple[torch.Tensor, ...],
    p: float,
) -> torch.Tensor:
    return _through_norm(grad, x, weight, eps, residual, None, paths, seeds, p)


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    return _through_norm(grad, x, weight, scale=scale)


def dropped(
    x: torch.Tensor, seed: torch.Tensor, p: float, place: tuple[int, int] | None = None
) -> torch.Tensor:
    x = _dense(x)
    rows, width = x.shape
    full_width, start = place or (width, 0)
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    grid = (rows, triton.cdiv(width, _COLUMNS))
    dropped_columns[grid](
        *(x, seed, out, width, x.stride(0), full_width, start, *_mask(p)), BLOCK=_COLUMNS
    )
    return out


def dropped_each(
    x: torch.Tensor, seeds: tuple[torch.Tensor, ...], p: float
) -> tuple[torch.Tensor, ...]:
    return tuple(dropped(x, seed, p) for seed in seeds)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    grid = (triton.cdiv(gate.numel(), _COLUMNS),)
    swiglu_columns[grid](gate, up, out, gate.numel(), BLOCK=_COLUMNS)
    return out


def _to_gate_and_up(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    grid = (triton.cdiv(gate.numel(), _COLUMNS),)
    swiglu_backward_columns[grid](
        *(grad.contiguous(), gate, up, *out, gate.numel()), BLOCK=_COLUMNS
    )
    return out


def swiglu_backward_(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _to_gate_and_up(grad, gate, up, (gate, up))


def swiglu_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    return _to_gate_and_up(grad, gate, up, (torch.empty_like(gate), torch.empty_like(up)))


def rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    x = _dense(x)
    tokens, heads, width = x.shape
    out = torch.empty((tokens, heads, width), dtype=x.dtype, device=x.device)
    sizes = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    rotate_heads[(tokens,)](
        *(x, cos.contiguous(), signed_sin.contiguous(), out),
        *(heads, width // 2, x.stride(0), x.stride(1)),
        HEADS=sizes[0],
        HALF=sizes[1],
    )
    return out


def rotate_both(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return rotate(q, cos, signed_sin), rotate(k, cos, signed_sin)


def losses_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _dense(logits)
    rows, vocabulary = logits.shape
    losses = torch.empty((rows, 1), dtype=torch.float32, device=logits.device)
    out = torch.empty((rows, vocabulary), dtype=logits.dtype, device=logits.device)
    losses_rows[(rows,)](
        *(logits, labels.contiguous(), losses, out, logits.stride(0)),
        vocabulary=vocabulary,
        BLOCK=_VOCABULARY,
        num_warps=8,
    )
    return losses, out


FORMS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add_norm": add_norm,
        "dropped": dropped,
        "dropped_each": dropped_each,
        "losses_and_gradient": losses_and_gradient,
        "norm": norm,
        "norm_backward": norm_backward,
        "norm_backward_dropped": norm_backward_dropped,
        "norm_dropped": norm_dropped,
        "only_norm_dropped": only_norm_dropped,
        "rms_norm": rms_norm,
        "rms_norm_backward": rms_norm_backward,
        "rotate": rotate,
        "rotate_both": rotate_both,
        "swiglu": swiglu,
        "swiglu_backward": swiglu_backward,
        "swiglu_backward_": swiglu_backward_,
        **triton_eight_bits.FORMS,
    }
)
"""By the name of the function that each is a form of, without a leading underscore."""
