"""Paths of CUDA taken without it, and kernels that a plan calls in its own way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.kernels import compiled as compiled_kernels
from llama.kernels.compiled import Plan, compiled, kernel, planned
from llama.kernels.paths import as_on_cuda, is_planned, on_cuda, run


def test_functions_stand_for_others_and_only_within() -> None:
    x = torch.tensor([4.0])
    with as_on_cuda({torch.sqrt: torch.square}):
        assert on_cuda(x) and is_planned()
        assert float(run(torch.sqrt, x)) == 16.0
        assert float(run(torch.neg, x)) == -4.0, "what is not named stays"
    assert not on_cuda(x) and not is_planned()
    assert float(run(torch.sqrt, x)) == 2.0


def test_nothing_is_left_behind_by_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), as_on_cuda({}):
        1 / 0  # noqa: B018
    assert not is_planned()


def test_a_plan_calls_kernels_and_says_whether_they_are_compiled() -> None:
    calls: list[tuple[Any, ...]] = []

    @kernel
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def call(function: Any, args: tuple[Any, ...]) -> Any:
        calls.append(args)
        return function(*args) + 1

    one = torch.ones(1)
    with planned(Plan(compiled=True, call=call)):
        assert compiled() and float(double(one)) == 3.0
    assert not compiled() and float(double(one)) == 2.0
    assert len(calls) == 1


class _OnGPU(torch.Tensor):
    is_cuda = True  # type: ignore[assignment]


def test_a_rank_without_tokens_calls_no_kernel_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels divide their work by the tokens; the functions that they are forms of do not."""
    monkeypatch.setattr(compiled_kernels, "_compiled", True)
    monkeypatch.setattr(compiled_kernels, "_forms", lambda: {"half_of": lambda x: x / (4 * len(x))})

    @kernel
    def half_of(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    monkeypatch.delitem(compiled_kernels.KERNELS, "half_of")
    some = torch.ones(2, 3).as_subclass(_OnGPU)
    assert torch.equal(half_of(some), torch.full((2, 3), 1 / 8)), "by the form"
    assert half_of(some[:0]).shape == (0, 3)
