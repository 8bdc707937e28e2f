"""The one switch for compiled kernels, and the decorator of the functions that it applies to.

A `kernel` is a function of tensors whose operations should become one GPU kernel. As long as
`compile_kernels` has not been called it runs as it is written, operation by operation. Then the
form of it in `triton_forms` takes its place on a GPU, except for arguments to which that form says
`NotImplemented`, and what torch.compile makes of it on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any

import torch

_compiled = False


@dataclass(frozen=True)
class Plan:
    """How kernels are called in a trace that computes nothing."""

    compiled: bool
    """Whether they are taken for compiled."""
    call: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    """Gives the results of a kernel, of the function as it is written and its arguments."""


KERNELS: dict[str, Callable[..., Any]] = {}
"""Every `kernel` by its name without a leading underscore."""
_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextmanager
def planned(plan: Plan) -> Iterator[None]:
    """Within, kernels are called as `plan` says, whatever the switch."""
    before = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(before)


def rounds(starts: range) -> list[int]:
    """`starts` of the rounds of a loop that all do the same with as much memory. A trace that
    computes nothing takes the first two, of which the second may find something of the first, and
    the last, which may be shorter."""
    every = list(starts)
    return every if _plan.get() is None or len(every) < 4 else [*every[:2], every[-1]]


def is_wanted(choice: str, on_cuda: bool, precision: str) -> bool:
    """Whether kernels are to be compiled, by `--compile`, the kind of device and what is computed
    in. Who asks for `fp32` asks for torch's own arithmetic: exponentials and roots in a GPU's
    compiled kernels are the fast ones, which are a few roundings off."""
    return choice == "true" or (choice == "auto" and on_cuda and precision != "fp32")


def missing() -> str | None:
    """What a GPU's kernels need and this machine has not, or None."""
    return None if find_spec("triton") else "Triton is not installed"


def compile_kernels() -> None:
    """From now on in this process, compile each `kernel` at its next call. Both ways need a C
    compiler. There is no way back within the process."""
    global _compiled
    _compiled = True


def compiled() -> bool:
    """Whether `compile_kernels` has been called."""
    plan = _plan.get()
    return _compiled if plan is None else plan.compiled


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled once the switch is on. Arguments are tensors whose dimension 0 is the
    tokens, tuples of such, numbers, types and None; all are given by position. Autograd does not
    see through it: it is for use within forward and backward passes that are written by hand, so
    gradients of its arguments are never asked for."""
    name = function.__name__.lstrip("_")
    KERNELS[name] = function
    made: list[Callable[..., Any]] = []  # by torch.compile, at the first call that needs it
    known: set[Any] = set()  # forms of arguments whose varying dimension was marked

    @wraps(function)
    def call(*args: Any) -> Any:
        if plan := _plan.get():
            return plan.call(function, args)
        if not _compiled:
            return function(*args)
        if (first := _first(args)).is_cuda:
            # A rank that shares few tokens may have none, which no kernel can divide its work by.
            found = _forms()[name](*args) if first.numel() else NotImplemented
            return function(*args) if found is NotImplemented else found
        if not made:
            made.append(torch.compile(function))
        # Whether an argument needs a gradient makes no difference here, but torch.compile would
        # compile the function once more for it. Detached, all look the same.
        args = _detached(args)
        form = _form(args)
        if form not in known:
            _mark_what_varies(args)
            known.add(form)
        return made[0](*args)

    return call


@lru_cache(maxsize=1)
def _forms() -> Mapping[str, Callable[..., Any]]:
    """Imported here: where there is no GPU there is no Triton."""
    from llama.kernels.triton_forms import FORMS

    return FORMS


def _first(args: tuple[Any, ...]) -> torch.Tensor:
    """The tensor that stands first, or is the first of the tuple that does."""
    return _first(args[0]) if isinstance(args[0], tuple) else args[0]


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
    """What two calls must have in common for one compiled kernel to serve both: types, numbers, and
    every size but the number of tokens (dimension 0 of what has more dimensions than one)."""
    return tuple(
        (arg.dtype, arg.shape[1:] if arg.dim() > 1 else arg.shape)
        if isinstance(arg, torch.Tensor)
        else _form(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def _mark_what_varies(args: tuple[Any, ...]) -> None:
    """Tell torch.compile which sizes change from call to call. The number of tokens does: without
    the mark it would compile anew for another number. The widths do not, and are to be constants of
    the kernel: to find an element's row and column by a width that is known only at run time takes
    a 64-bit division for each element."""
    for arg in args:
        if isinstance(arg, tuple):
            _mark_what_varies(arg)
        elif isinstance(arg, torch.Tensor):
            if arg.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)
            for dim in range(min(1, arg.dim() - 1), arg.dim()):
                torch._dynamo.mark_static(arg, dim)
