"""The fused block over ranks that share a model, or the tokens of a row, against the plain one on
the same ranks."""

from __future__ import annotations

import pytest

from tests.support.tiny_runs import torchrun_module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "ranks", "argv"),
    [
        ("tensor_parallel", 2, []),
        pytest.param("tensor_parallel", 2, ["read"], marks=pytest.mark.long),
        pytest.param("tensor_parallel", 4, [], marks=pytest.mark.long),
        pytest.param("sequence_parallel", 2, [], marks=pytest.mark.long),
        pytest.param("sequence_parallel", 4, [], marks=pytest.mark.long),
    ],
)
def test_fused_equals_plain_on_ranks(parallel: str, ranks: int, argv: list[str]) -> None:
    done = torchrun_module(f"tests.unit.fused.{parallel}_ranks", *argv, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
