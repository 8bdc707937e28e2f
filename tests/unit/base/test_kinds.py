"""Every way to hold a frozen weight keeps the contract of `FrozenWeight`."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from llama.base.frozen import frozen_product
from llama.base.kinds import KINDS, lacking
from llama.settings.base import PACKAGES, Base

ROWS, COLUMNS = 24, 16
DTYPES = [torch.float32, torch.bfloat16]


def stored() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_products_are_those_with_the_dense_matrix(
    name: str, dtype: torch.dtype, tokens: int
) -> None:
    kind = KINDS[name]
    held = kind(kind.empty(torch.Size((ROWS, COLUMNS)), dtype, torch.device("cpu")))
    held.fill(stored())
    assert held.nbytes > 0 and not held.parameter.requires_grad
    dense = held.dense().double()
    x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(1))
    x = x.to(held.compute_dtype).requires_grad_()
    g = torch.randn(tokens, ROWS, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    # The rounding of the type that is computed in: its epsilon, on sums of some tens of terms; and
    # where the input is rounded too, half of an eighth of it at most, by chance half of that.
    limit = 8 * torch.finfo(dtype).eps + (0.04 if kind.ROUNDS_INPUT else 0.0)
    found = frozen_product(x, held)
    assert found.dtype == x.dtype
    assert apart(found, x.detach().double() @ dense.t()) < limit
    (gradient,) = torch.autograd.grad(found, x, g)
    assert apart(gradient, g.double() @ dense) < limit
    assert torch.equal(held.times_transposed(g), gradient)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_the_input_is_kept(name: str) -> None:
    kind = KINDS[name]
    held = kind(kind.empty(torch.Size((ROWS, COLUMNS)), torch.float32, torch.device("cpu")))
    held.fill(stored())
    kept: list[torch.Tensor] = []
    x = torch.randn(5, COLUMNS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        frozen_product(x, held)
    assert not kept


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(name: str, value: float) -> None:
    """The loader asks the dense form, to name a damaged weight."""
    kind = KINDS[name]
    held = kind(kind.empty(torch.Size((ROWS, COLUMNS)), torch.float32, torch.device("cpu")))
    held.fill(stored())
    assert torch.isfinite(held.dense()).all()
    spoilt = stored()
    spoilt[3, 5] = value
    held.fill(spoilt)
    assert not torch.isfinite(held.dense()).all()


def test_the_options_and_the_table_name_the_same_kinds() -> None:
    assert set(get_args(Base)) == set(KINDS) and set(PACKAGES) <= set(KINDS)


def test_a_gpu_without_the_products_is_named() -> None:
    (problem,) = lacking("fp8", "NVIDIA A100", (8, 0))
    assert problem == (
        "--base fp8: NVIDIA A100 has no such products: it is of compute capability 8.0, and they "
        "begin with 8.9; it has those of half, int8, nf4"
    )
    assert not lacking("fp8", "NVIDIA L4", (8, 9)) and not lacking("int8", "NVIDIA A100", (8, 0))
    assert lacking("int8", "NVIDIA V100", (7, 0)) and not lacking("half", "NVIDIA V100", (7, 0))
