"""Triton's interpreter, with a cast to float8 that rounds: its own adds what it rounds up to bits
that may be set already (Triton 3.6), so that torch's stands for it. That a GPU rounds as torch does
is for a GPU to show: tests/gpu/test_eight_bits_on_gpu.py. And with what a GPU's own instructions
compute, which it has none of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float


def _rounded(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
    if wanted != tl.float8e4nv:
        return _convert(values, given, wanted, rounding)
    assert given == tl.float32
    numbers = torch.tensor(values).view(torch.float32)
    return numbers.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


interpreter._convert_float = _rounded

IN_FLOAT32: dict[str, Callable[[Any], Any]] = {
    "ex2.approx.ftz.f32 $0, $1;": lambda x: tl.exp2(x),
    "rcp.approx.ftz.f32 $0, $1;": lambda x: 1.0 / x,
}


def _computed(code: str, constraints: str, args: list[Any], **kwargs: Any) -> Any:
    return IN_FLOAT32[code](*args)


tl.inline_asm_elementwise = _computed
