"""How many elements are a rank's, counted before and after ZeRO-3 has taken them away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llama.base.dense import Dense
from llama.parallel.shares import optimized_elements, own_values, whole_elements


def partitioned(values: torch.Tensor, rank: int, ranks: int) -> Any:
    """A parameter as ZeRO-3 leaves it between two uses; the padding holds what memory held."""
    share = -(-values.numel() // ranks)
    padded = torch.full((share * ranks,), float("nan"))
    padded[: values.numel()] = values.flatten()
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_numel, parameter.ds_zero_partition_rank = values.numel(), rank
    parameter.ds_tensor = padded[share * rank : share * (rank + 1)].clone()
    return parameter


@pytest.mark.parametrize(
    ("stage", "ranks", "expected"),
    [
        (0, 3, 15 + 8 + 7),
        (1, 1, 24 + 8),
        (2, 3, 8 + 4),  # 23 to 24, 7 to 12
        (3, 3, 5 + 3 + 3),
        (3, 64, 3),
    ],
)
def test_elements_of_the_optimizer(stage: int, ranks: int, expected: int) -> None:
    values = [torch.ones(3, 5), torch.ones(8), torch.ones(7)]
    whole = [nn.Parameter(value) for value in values]
    groups = [{"params": whole[:2]}, {"params": whole[2:]}]
    assert optimized_elements(groups, stage, ranks) == expected
    if stage == 3:
        cut = [partitioned(value, 0, ranks) for value in values]
        assert optimized_elements([{"params": cut}], stage, ranks) == expected
        assert whole_elements(cut) == whole_elements(whole) == 30


def test_a_ranks_own_values_are_all_of_them_once_and_no_padding() -> None:
    values = torch.arange(7.0)
    for ranks in (1, 2, 3, 5, 8):
        shares = [own_values(partitioned(values, rank, ranks)) for rank in range(ranks)]
        assert torch.equal(torch.cat(shares), values)
    assert torch.equal(own_values(nn.Parameter(values.view(7, 1))), values.view(7, 1))


def test_bytes_of_a_partitioned_weight_are_those_of_the_share() -> None:
    assert Dense(nn.Parameter(torch.ones(3, 4))).nbytes == 48
    assert Dense(partitioned(torch.ones(3, 4), 1, 4)).nbytes == 12
