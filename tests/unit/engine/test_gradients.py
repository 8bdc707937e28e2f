"""Norm and overflow of all gradients at once, against DeepSpeed's own, one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from llama.engine.gradients import check_all_at_once, has_overflow
from tests.support.closeness import assert_close, sums_of


class Optimizer(DeepSpeedZeroOptimizer):
    """Of DeepSpeed's optimizer what its norm reads, on rank `rank` of a sharded model; its sum
    over ranks is left out."""

    def __init__(self, gradients: list[torch.Tensor], rank: int) -> None:
        self.averaged_gradients = {0: gradients}
        self.cpu_offload = False
        self.compute_grad_norm = True
        self.model_parallel_rank = rank
        self.model_parallel_group = None
        self.dp_process_group = None
        self.device = "cpu"


def case(dtype: torch.dtype = torch.bfloat16) -> tuple[list[torch.Tensor], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6), (3, 4), (5,), (7, 2)]
    gradients = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters[::2]:
        parameter.model_parallel = True  # type: ignore[attr-defined]
    padding = torch.zeros(9, dtype=dtype)
    padding._zero_padding = True  # type: ignore[attr-defined]
    return [gradients[0], padding, *gradients[1:]], parameters


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_norm_is_deepspeed_s(
    dtype: torch.dtype, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replicated tensor counts on the first rank alone, padding nowhere."""
    monkeypatch.setattr("deepspeed.comm.all_reduce", lambda *args, **kwargs: None)
    gradients, parameters = case(dtype)
    optimizer: Any = Optimizer(gradients, rank)
    expected = optimizer.get_grad_norm_direct(gradients, parameters)
    check_all_at_once(optimizer)
    found = optimizer.get_grad_norm_direct(gradients, parameters)
    assert_close(found, expected, sums_of(sum(g.numel() for g in gradients)))  # of squares
    assert expected > 0


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_one_bad_element_is_an_overflow(dtype: torch.dtype, bad: float) -> None:
    gradients, _ = case(dtype)
    largest = torch.full((2, 2), torch.finfo(dtype).max, dtype=dtype)
    optimizer: Any = Optimizer([*gradients, largest], 0)
    check_all_at_once(optimizer)
    assert optimizer.has_overflow_partitioned_grads_serial().tolist() == [False]
    gradients[2][1] = bad
    assert optimizer.has_overflow_partitioned_grads_serial().tolist() == [True]
    assert has_overflow([None, *gradients], "cpu").item()


@pytest.mark.parametrize("group", [[], [None], [torch.zeros(0)], None], ids=str)
def test_a_rank_without_any_gradient_has_no_overflow(group: Any) -> None:
    """As one that owns nothing but padding, or no more than frozen tensors of a group."""
    optimizer: Any = Optimizer([], 0)
    optimizer.averaged_gradients = {0: group}
    check_all_at_once(optimizer)
    found = optimizer.has_overflow_partitioned_grads_serial()
    assert found.tolist() == [False] and found.dtype == torch.bool
    assert str(found.device) == optimizer.device


def test_another_optimizer_is_left_as_it_is() -> None:
    other = SimpleNamespace(cpu_offload=False)
    check_all_at_once(other)
    offloading: Any = Optimizer([], 0)
    offloading.cpu_offload = True
    check_all_at_once(offloading)
    assert vars(other) == {"cpu_offload": False}
    assert "get_grad_norm_direct" not in vars(offloading)
