"""Which functions of tensors torch.compile makes into single kernels, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch

_compiled = False


def compile_kernels() -> None:
    """From now on in this process, fuse each `kernel` with torch.compile (on CUDA it writes Triton
    kernels and needs a C compiler; the first step then takes some seconds longer)."""
    global _compiled
    _compiled = True


def compiled() -> bool:
    return _compiled


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled at its first call after `compile_kernels`."""
    fused: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*args: Any) -> Any:
        if not _compiled:
            return function(*args)
        if not fused:
            fused.append(torch.compile(function))
        _only_tokens_vary(args)
        return fused[0](*args)

    return call


def _only_tokens_vary(args: Iterable[Any]) -> None:
    """One kernel for every number of tokens; the widths are constants of it, or each element's
    place would be found by dividing 64-bit integers."""
    for arg in args:
        if isinstance(arg, tuple):
            _only_tokens_vary(arg)
        elif isinstance(arg, torch.Tensor):
            if arg.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)
            for dim in range(min(1, arg.dim() - 1), arg.dim()):
                torch._dynamo.mark_static(arg, dim)
