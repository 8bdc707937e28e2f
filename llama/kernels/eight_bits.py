"""Products of matrices in numbers of eight bits, whose sums have 32.

Numbers that lie together are held as codes and one float32 scale, the largest of their magnitudes
over the largest that the codes can be: int8 up to 127, which are spaced evenly, or float8 e4m3 up
to 448, of four significant bits (Micikevicius et al., "FP8 Formats for Deep Learning", 2022). Where
each row of both factors has a scale, these leave the sum ("vector-wise quantization" of Dettmers
et al., "LLM.int8()", 2022, section 2):

    sum_k (a_t x_tk) (s_n w_nk) = a_t s_n sum_k x_tk w_nk

Of int8, in which what is small beside the largest is lost, a token has a scale for each `GROUP` of
its numbers, and there are as many sums.

Shapes: T tokens, K what is summed over, N outputs, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama.kernels.codes import GROUP, TILE, quantised
from llama.kernels.compiled import kernel
from llama.kernels.paths import made_once, on_cuda

_aten: Any = torch.ops.aten


def times(
    x_TK: torch.Tensor,
    codes_NK: torch.Tensor,
    before_K: torch.Tensor | None = None,
    after_N: torch.Tensor | None = None,
    into_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(x diag(before)) codes^T diag(after)`, `[T, N]` in the type of `x`: the first factor is
    quantised to the type of the codes, a token at a time. In the place of `into` where given."""
    factor = quantised_rows(x_TK, before_K, codes_NK.dtype)
    return product(factor, codes_NK, after_N, x_TK.dtype, into_TN)


Quantised = tuple[torch.Tensor, torch.Tensor]
"""Codes and scales, of `quantised_rows`."""


def product(
    x: Quantised,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
    dtype: torch.dtype,
    into_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x codes^T diag(after)`, `[T, N]` in `dtype`, of a first factor that is quantised already; in
    the place of `into`, of that type, where it is given."""
    y_TN = _product(x, codes_NK, after_N, dtype, into_TN)
    return y_TN if into_TN is None or y_TN is into_TN else into_TN.copy_(y_TN)


def _product(
    x: Quantised,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
    dtype: torch.dtype,
    into_TN: torch.Tensor | None,
) -> torch.Tensor:
    """The same, in the place of `into` if the product itself can leave it there."""
    codes_TK, scales_TG = x
    if not on_cuda(codes_TK):
        return _in_float32(codes_TK, scales_TG, codes_NK, after_N, dtype)
    # The tensor cores of Hopper read a second factor of eight bits along the sum alone.
    rows = codes_NK if codes_NK.is_contiguous() else turned(codes_NK.t())
    outputs = codes_NK.shape[0]
    if codes_NK.dtype == torch.int8:
        return grouped_product(codes_TK, scales_TG, rows[:outputs], after_N, dtype)
    as_it_is = outputs % TILE == 0 and dtype == torch.bfloat16
    out_TN = into_TN if as_it_is else None
    y_TN = _float8_product(codes_TK, scales_TG, _tiled(rows), after_N, out_TN).to(dtype)
    # No view, since others add in place to what leaves an autograd function.
    return y_TN if y_TN.shape[1] == outputs else y_TN[:, :outputs].contiguous()


@kernel
def quantised_rows(
    x_TK: torch.Tensor, before_K: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `x diag(before)`, filled up with zeros to whole groups of int8 or tiles of float8,
    and scales `[T, G]`, of float8 one for each token."""
    tokens, size = x_TK.shape
    missing = -size % (GROUP if dtype == torch.int8 else TILE)
    values = F.pad(x_TK.float(), (0, missing)) if missing else x_TK.to(torch.float32, copy=True)
    if before_K is not None:
        values[:, :size].mul_(before_K)
    filled = size + missing
    group = GROUP if dtype == torch.int8 else filled
    codes, scales = quantised(values.view(-1, group), dtype)
    return codes.view(tokens, filled), scales.view(tokens, filled // group)


@kernel
def turned(codes_KN: torch.Tensor) -> torch.Tensor:
    """The transpose, `[N, K]`, each row in one piece; filled up with zeros to whole tiles."""
    return _tiled(codes_KN.t())


def _tiled(codes: torch.Tensor) -> torch.Tensor:
    """`codes` filled up with zeros to whole tiles, each row in one piece."""
    missing = -codes.shape[0] % TILE, -codes.shape[1] % TILE
    if any(missing):
        bytes_ = F.pad(codes.view(torch.int8), (0, missing[1], 0, missing[0]))
        codes = bytes_.view(codes.dtype)
    return codes.contiguous()


def _in_float32(
    codes_TK: torch.Tensor,
    scales_TG: torch.Tensor,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`(scales x) w^T diag(after)`, `[T, N]` in `dtype`, of the first `K` codes of each token. What
    torch has for eight bits on CPUs is wrong or slow: without VNNI instructions `torch._int_mm`
    adds two products of int8 in 16 bits, where they overflow; `torch._scaled_mm` of float8 took
    74 s for 1024 x 576 x 1536 (torch 2.13)."""
    size = codes_NK.shape[1]
    scales_TK = scales_TG
    if scales_TG.shape[1] > 1:
        scales_TK = scales_TG.repeat_interleave(GROUP, dim=1)[:, :size]
    y_TN = (codes_TK[:, :size].float() * scales_TK) @ codes_NK.float().t()
    return (y_TN if after_N is None else y_TN.mul_(after_N)).to(dtype)


@kernel
def grouped_product(
    codes_TK: torch.Tensor,
    scales_TG: torch.Tensor,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of int8, `[T, N]` in `dtype`."""
    return _in_float32(codes_TK, scales_TG, codes_NK, after_N, dtype)


def _float8_product(
    codes_TK: torch.Tensor,
    scales_T1: torch.Tensor,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
    out_TN: torch.Tensor | None,
) -> torch.Tensor:
    """`diag(scales) x w^T diag(after)`, `[T, N]` in bf16, the one type that the product gives with
    a scale a row; in the place of `out` where it is given. It takes a scale for each output, and
    whole tiles of them: there are more than `after` has where that is None or shorter."""
    outputs = codes_NK.shape[0]
    if after_N is None:
        after_N = _ones(outputs, codes_NK.device)
    elif len(after_N) < outputs:
        after_N = F.pad(after_N, (0, outputs - len(after_N)))
    factors = codes_TK, codes_NK.t(), scales_T1, after_N.unsqueeze(0)
    how = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    if out_TN is None:
        return _aten._scaled_mm(*factors, **how)
    return _aten._scaled_mm.out(*factors, **how, out=out_TN)


def _ones(size: int, device: torch.device) -> torch.Tensor:
    """Made once, but not while a CUDA graph is captured: memory of a graph holds what the graph
    last left there."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.ones(size, device=device) if capturing else _kept_ones(size, device)


@made_once
def _kept_ones(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, device=device)
