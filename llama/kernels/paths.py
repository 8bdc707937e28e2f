"""Which device's paths the code takes.

A planner has no GPU, and follows a GPU's paths on tensors that are said to be on the CPU. So what
decides by the device asks here, and the few functions of torch that decide so themselves are called
through `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import torch

Operators = Mapping[Any, Callable[..., Any]]
"""Functions of torch to what CUDA has for them."""

_operators: ContextVar[Operators | None] = ContextVar("operators", default=None)


@contextmanager
def as_on_cuda(operators: Operators) -> Iterator[None]:
    """Within, every tensor is taken to be on a CUDA device, and `run` calls what `operators` has in
    place of a function."""
    before = _operators.set(operators)
    try:
        yield
    finally:
        _operators.reset(before)


def is_planned() -> bool:
    """Whether the call is made within `as_on_cuda`: there is no device that could be asked."""
    return _operators.get() is not None


def made_once(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make`, whose results are kept, but for those of a trace, which have no values."""
    kept = cache(make)

    @wraps(make)
    def given(*args: Any) -> torch.Tensor:
        return make(*args) if is_planned() else kept(*args)

    return given


def on_cuda(tensor: torch.Tensor) -> bool:
    """Whether `tensor` takes CUDA's paths."""
    return tensor.is_cuda or is_planned()


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, by what stands for it within `as_on_cuda`."""
    return (_operators.get() or {}).get(function, function)(*args, **kwargs)
