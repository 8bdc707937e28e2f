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

from llama.kernels.compiled import rounds
from llama.kernels.paths import on_cuda

_aten: Any = torch.ops.aten
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of each type of codes, the largest that is used."""
GROUP = 128
"""Numbers of a token that share a scale in int8; in float8 all of them do."""
SMALLEST = torch.finfo(torch.float32).tiny
"""A scale is no smaller: rows of zeros have one too."""
TILE = 16
"""CUDA's products take multiples of so many codes."""
MOST_REFUSED = 16
"""Rows up to which CUDA's product of int8 refuses the first factor."""


def quantised(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `dtype` and scales `[T, 1]` of each row of `values`, `[T, K]` in float32, which is
    overwritten. The scale of a row that is not all finite is not finite."""
    amax_T1 = torch.linalg.vector_norm(values, float("inf"), dim=1, keepdim=True)
    scales_T1 = (amax_T1 / LARGEST[dtype]).clamp_(min=SMALLEST)
    values.div_(scales_T1)
    return (values.round_() if dtype == torch.int8 else values).to(dtype), scales_T1


def times(
    x_TK: torch.Tensor,
    codes_NK: torch.Tensor,
    before_K: torch.Tensor | None = None,
    after_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(x diag(before)) codes^T diag(after)`, `[T, N]` in the type of `x`: the first factor is
    quantised to the type of the codes, a token at a time."""
    values = x_TK.to(torch.float32, copy=True)
    if before_K is not None:
        values.mul_(before_K)
    codes_TK, scales_TG = _by_token(values, codes_NK.dtype)
    del values
    if on_cuda(x_TK) and codes_NK.dtype != torch.int8:
        return _float8_on_cuda(codes_TK, scales_TG, codes_NK, after_N).to(x_TK.dtype)
    product = _int8_on_cuda if on_cuda(x_TK) else _on_cpu
    y_TN = product(codes_TK, scales_TG, codes_NK)
    return (y_TN if after_N is None else y_TN.mul_(after_N)).to(x_TK.dtype)


def _by_token(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantised`, with a scale for each token, or for each group of each: `[T, G]`."""
    if dtype != torch.int8:
        return quantised(values, dtype)
    tokens, size = values.shape
    filled = F.pad(values, (0, -size % GROUP))
    codes, scales = quantised(filled.view(-1, GROUP), dtype)
    return codes.view(tokens, -1)[:, :size], scales.view(tokens, -1)


def _on_cpu(
    codes_TK: torch.Tensor, scales_TG: torch.Tensor, codes_NK: torch.Tensor
) -> torch.Tensor:
    """The product in float32, `[T, N]`. What torch has for eight bits on CPUs is wrong or slow:
    without VNNI instructions `torch._int_mm` adds two products of int8 in 16 bits, where they
    overflow; `torch._scaled_mm` of float8 took 74 s for 1024 x 576 x 1536 (torch 2.13)."""
    scales_TK = scales_TG
    if scales_TG.shape[1] > 1:
        scales_TK = scales_TG.repeat_interleave(GROUP, dim=1)[:, : codes_TK.shape[1]]
    return (codes_TK.float() * scales_TK) @ codes_NK.float().t()


def _int8_on_cuda(
    codes_TK: torch.Tensor, scales_TG: torch.Tensor, codes_NK: torch.Tensor
) -> torch.Tensor:
    """The same, a group at a time: sums of int8 are exact in int32."""
    tokens, outputs = codes_TK.shape[0], codes_NK.shape[0]
    codes_TK = F.pad(codes_TK, (0, 0, 0, max(0, MOST_REFUSED + 1 - tokens)))
    y_TN = torch.zeros(tokens, outputs, device=codes_TK.device)
    for start in rounds(range(0, codes_TK.shape[1], GROUP)):
        some = slice(start, start + GROUP)
        sums_TN = _aten._int_mm(_tiled(codes_TK[:, some]), _tiled(codes_NK[:, some]).t())
        y_TN += sums_TN[:tokens, :outputs] * scales_TG[:, start // GROUP, None]
    return y_TN


def _float8_on_cuda(
    codes_TK: torch.Tensor,
    scales_T1: torch.Tensor,
    codes_NK: torch.Tensor,
    after_N: torch.Tensor | None,
) -> torch.Tensor:
    """`diag(scales) x w^T diag(after)`, `[T, N]` in bf16, the one type that the product gives with
    a scale a row."""
    outputs = codes_NK.shape[0]
    codes_NK = _tiled(codes_NK)
    if after_N is None:
        after_N = torch.ones(outputs, device=codes_NK.device)
    after_1N = F.pad(after_N, (0, codes_NK.shape[0] - outputs)).unsqueeze(0)
    y_TN = _aten._scaled_mm(
        _tiled(codes_TK, rows=False),
        codes_NK.t(),
        scale_a=scales_T1,
        scale_b=after_1N,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    # No view, since others add in place to what leaves an autograd function.
    return y_TN if y_TN.shape[1] == outputs else y_TN[:, :outputs].contiguous()


def _tiled(codes: torch.Tensor, rows: bool = True) -> torch.Tensor:
    """`codes` filled up with zeros to whole tiles, each row in one piece: a transposed view is
    turned, since the tensor cores of Hopper read a second factor of eight bits no other way."""
    missing = (-codes.shape[0] % TILE if rows else 0), -codes.shape[1] % TILE
    if any(missing):
        bytes_ = F.pad(codes.view(torch.int8), (0, missing[1], 0, missing[0]))
        codes = bytes_.view(codes.dtype)
    return codes.contiguous()
