"""Which functions of tensors torch.compile makes into single kernels, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
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
    """`function` of tensors, compiled at its first call after `compile_kernels`. It has no part in
    autograd: it is called within forward and backward passes written by hand."""
    fused: list[Callable[..., Any]] = []
    seen: set[Any] = set()

    @wraps(function)
    def call(*args: Any) -> Any:
        if not _compiled:
            return function(*args)
        if not fused:
            fused.append(torch.compile(function))
        args = _detached(args)  # or one that needs a gradient would ask for a kernel of its own
        form = _form(args)
        if form not in seen:
            _only_tokens_vary(args)
            seen.add(form)
        return fused[0](*args)

    return call


def _detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        arg.detach()
        if isinstance(arg, torch.Tensor)
        else _detached(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def _form(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What one kernel serves: all but the number of tokens."""
    return tuple(
        (arg.dtype, arg.shape[1:] if arg.dim() > 1 else arg.shape)
        if isinstance(arg, torch.Tensor)
        else _form(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def _only_tokens_vary(args: tuple[Any, ...]) -> None:
    """Have torch.compile make one kernel for every number of tokens; the widths are constants of
    it, or each element's place would be found by dividing 64-bit integers."""
    for arg in args:
        if isinstance(arg, tuple):
            _only_tokens_vary(arg)
        elif isinstance(arg, torch.Tensor):
            if arg.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)
            for dim in range(min(1, arg.dim() - 1), arg.dim()):
                torch._dynamo.mark_static(arg, dim)
