"""The kernels of a GPU by the functions that they are forms of: each computes what the function of
its name, written with torch's operations, says (`elementwise.py`, `llama/fused/kernels.py`,
`llama/parallel/dropout.py`, `llama/model/loss.py`); those of `eight_bits.py` and
`four_bits.py` stand in `triton_eight_bits.py` and `triton_four_bits.py`.

Compiled at the first call in a process, a second each at most, and kept on the disk by Triton for
the next one.

Shapes: T tokens, D dim, F feed-forward width, H heads, E head_dim, V vocabulary, n positions.
"""

# Triton is installed where there is a GPU, and not where this is checked.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import triton

from llama.kernels import triton_eight_bits, triton_four_bits
from llama.kernels.path_forms import PATH_FORMS
from llama.kernels.path_tiles import dense, mask
from llama.kernels.triton_kernels import (
    added_columns,
    dropped_columns,
    losses_rows,
    norm_backward_rows,
    norm_rows,
    shard_gradient_columns,
    shard_statistics_rows,
    swiglu_backward_columns,
    swiglu_columns,
)

Shares = tuple[torch.Tensor, ...]

_COLUMNS = 1024
"""Of a row that several programs share."""
_VOCABULARY = 4096
"""Logits that a program holds at a time."""


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _two(shares: Shares) -> tuple[torch.Tensor, ...]:
    """As many as the kernels take; a second that is not there is not read."""
    first, *others = map(dense, shares)
    return first, *(others or [first])


def _of_two(form: Callable[..., Any]) -> Callable[..., Any]:
    """`form`, or what says that the function is to be taken as it is written where its second
    argument has more shares than the kernels take."""

    def call(*args: Any) -> Any:
        return form(*args) if len(args[1]) <= 2 else NotImplemented

    return call


def _normed(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: Shares, shares: Shares = ()
) -> Shares:
    """In `out` the sum with `shares`, its norm, and the norm's scale; without `shares` the first is
    left as it is."""
    x = dense(x)
    rows, width = x.shape
    total, y, scale = out
    assert all(place.is_contiguous() for place in out)
    both = _two(shares or (x,))
    block = triton.next_power_of_2(width)
    norm_rows[(rows,)](
        *(x, *both, weight, total, y, scale),
        *(width, x.stride(0), *(share.stride(0) for share in both), eps),
        COUNT=len(shares),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Shares:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    return _normed(x, weight, eps, (y, y, scale))[1:]


def added(x: torch.Tensor, shares: Shares, out: torch.Tensor) -> torch.Tensor:
    x, both = dense(x), _two(shares)
    rows, width = x.shape
    assert out.is_contiguous()
    added_columns[(rows, triton.cdiv(width, _COLUMNS))](
        *(x, *both, out, width, x.stride(0), *(share.stride(0) for share in both)),
        COUNT=len(shares),
        BLOCK=_COLUMNS,
    )
    return out


def add_norm(
    x: torch.Tensor, shares: Shares, weight: torch.Tensor, eps: float, out: Shares
) -> Shares:
    return _normed(x, weight, eps, out, shares)


def _through_norm(
    grads: Shares,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient to `x`, and `residual` with it; the norm's scale is given or found by `eps`."""
    both, x = _two(grads), dense(x)
    before = x if residual is None else dense(residual)
    rows, width = x.shape
    assert out.is_contiguous()
    block = triton.next_power_of_2(width)
    norm_backward_rows[(rows,)](
        *(before, *both, x, weight, x if scale is None else scale, out, width, before.stride(0)),
        *(*(grad.stride(0) for grad in both), x.stride(0), eps),
        COUNT=len(grads),
        RESIDUAL=residual is not None,
        SCALE=scale is not None,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out


def norm_backward(
    residual: torch.Tensor,
    shares: Shares,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> torch.Tensor:
    return _through_norm(shares, x, weight, out, eps, residual)


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return _through_norm((grad,), x, weight, out, scale=scale)


def dropped(
    x: torch.Tensor, seed: torch.Tensor, p: float, start: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    x = dense(x)
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    grid = (rows, triton.cdiv(width, _COLUMNS))
    dropped_columns[grid](*(x, seed, out, width, x.stride(0), *start, *mask(p)), BLOCK=_COLUMNS)
    return out


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    grid = (triton.cdiv(gate.numel(), _COLUMNS),)
    swiglu_columns[grid](gate, up, out, gate.numel(), BLOCK=_COLUMNS)
    return out


def swiglu_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate), torch.empty_like(up)
    grid = (triton.cdiv(gate.numel(), _COLUMNS),)
    swiglu_backward_columns[grid](
        *(grad.contiguous(), gate, up, *out, gate.numel()), BLOCK=_COLUMNS
    )
    return out


def losses_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = dense(logits)
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


def shard_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = dense(logits)
    rows, vocabulary = logits.shape
    out = torch.empty((rows, 3), dtype=torch.float32, device=logits.device)
    shard_statistics_rows[(rows,)](
        *(logits, labels.contiguous(), out, logits.stride(0)),
        vocabulary=vocabulary,
        BLOCK=_VOCABULARY,
        num_warps=8,
    )
    return out


def shard_gradient(
    logits: torch.Tensor, labels: torch.Tensor, log_normaliser: torch.Tensor
) -> torch.Tensor:
    logits = dense(logits)
    rows, vocabulary = logits.shape
    out = torch.empty((rows, vocabulary), dtype=logits.dtype, device=logits.device)
    shard_gradient_columns[(rows, triton.cdiv(vocabulary, _VOCABULARY))](
        *(logits, labels.contiguous(), log_normaliser.contiguous(), out),
        *(logits.stride(0), vocabulary),
        BLOCK=_VOCABULARY,
        num_warps=8,
    )
    return out


FORMS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add_norm": _of_two(add_norm),
        "added": _of_two(added),
        "dropped": dropped,
        "losses_and_gradient": losses_and_gradient,
        "norm_backward": _of_two(norm_backward),
        "rms_norm": rms_norm,
        "rms_norm_backward": rms_norm_backward,
        "shard_gradient": shard_gradient,
        "shard_statistics": shard_statistics,
        "swiglu": swiglu,
        "swiglu_backward": swiglu_backward,
        **PATH_FORMS,
        **triton_eight_bits.FORMS,
        **triton_four_bits.FORMS,
    }
)
"""By the name of the function that each is a form of, without a leading underscore."""
