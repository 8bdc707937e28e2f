"""Products of matrices in numbers of eight bits, whose sums have 32.

A row of numbers is held as codes and one float32 scale, its largest magnitude over the largest
that the codes can be: int8 up to 127, which are spaced evenly, or float8 e4m3 up to 448, of four
significant bits (Micikevicius et al., "FP8 Formats for Deep Learning", 2022). Where each row of
both factors has a scale, these leave the sum ("vector-wise quantization" of Dettmers et al.,
"LLM.int8()", 2022, section 2):

    sum_k (a_t x_tk) (s_n w_nk) = a_t s_n sum_k x_tk w_nk

Shapes: T tokens, K what is summed over, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama.kernels.paths import on_cuda

_aten: Any = torch.ops.aten
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of each type of codes, the largest that is used."""
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
    codes_TK, scales_T1 = quantised(values, codes_NK.dtype)
    del values
    if on_cuda(x_TK) and codes_NK.dtype != torch.int8:
        return _float8_on_cuda(codes_TK, scales_T1, codes_NK, after_N).to(x_TK.dtype)
    sums_TN = _sums_on_cuda(codes_TK, codes_NK) if on_cuda(x_TK) else _sums(codes_TK, codes_NK)
    y_TN = sums_TN * scales_T1
    return (y_TN if after_N is None else y_TN.mul_(after_N)).to(x_TK.dtype)


def _sums(codes_TK: torch.Tensor, codes_NK: torch.Tensor) -> torch.Tensor:
    """`sum_k x_tk w_nk`, `[T, N]`, in float32, in which each product of two codes is exact. What
    torch has for it on CPUs is wrong or slow: without VNNI instructions `torch._int_mm` adds two
    products of int8 in 16 bits, where they overflow; `torch._scaled_mm` of float8 took 74 s for
    1024 x 576 x 1536, on a CPU with AMX (torch 2.13)."""
    return codes_TK.float() @ codes_NK.float().t()


def _sums_on_cuda(codes_TK: torch.Tensor, codes_NK: torch.Tensor) -> torch.Tensor:
    """The same of int8, in int32."""
    tokens, outputs = codes_TK.shape[0], codes_NK.shape[0]
    codes_TK = F.pad(codes_TK, (0, 0, 0, max(0, MOST_REFUSED + 1 - tokens)))
    return _aten._int_mm(_tiled(codes_TK), _tiled(codes_NK).t())[:tokens, :outputs]


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
