"""Frozen weights in int8 and float8 against the formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama.base import packed
from llama.base.eight_bits import FP8, EightBits, Int8
from llama.base.frozen import frozen_product
from llama.kernels import codes as numbers

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", [Int8, FP8])
SIDES = pytest.mark.parametrize(
    ("kind", "side"), [(Int8, 0), (FP8, 0), (FP8, 1)], ids=["int8", "fp8-rows", "fp8-columns"]
)
"""Whose index has a scale."""
SHAPES = [(128, 256), (24, 16), (7, 33), (1, 1), (130, 1500)]
STEP = {Int8: 0.5 / 127, FP8: 16 / 448}
"""Half the distance of neighbouring numbers, of the largest: in e4m3 of those from 256 to 448."""


def weights(shape: tuple[int, ...]) -> torch.Tensor:
    """Rows and columns of several sizes, so that their scales differ."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    rows, columns = (torch.linspace(0.01, 2.0, size) for size in shape)
    return values * rows.unsqueeze(1) * columns


def tokens(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Some of another size, one of them zero, one tiny as gradients are."""
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    values *= torch.linspace(0.0, 3.0, count).unsqueeze(1)
    values[-1] *= 1e-20
    return values


def held(
    kind: type[EightBits], stored: torch.Tensor, side: int, dtype: torch.dtype = torch.float32
) -> EightBits:
    weight = kind(kind.empty(stored.shape, dtype, CPU, side))
    weight.fill(stored)
    return weight


def rounded(kind: type[EightBits], values: torch.Tensor) -> torch.Tensor:
    """Each row to the nearest numbers of its scale, in float64."""
    scale = values.abs().amax(dim=1, keepdim=True) / numbers.LARGEST[kind.CODES]
    scale = scale.clamp(min=numbers.SMALLEST)
    codes = values / scale
    codes = codes.round() if kind is Int8 else codes.to(kind.CODES)
    return codes.double() * scale.double()


def by_token(kind: type[EightBits], values: torch.Tensor) -> torch.Tensor:
    """The same of tokens, of which each 128 numbers have a scale of int8."""
    groups = values.split(numbers.GROUP if kind is Int8 else values.shape[1], dim=1)
    return torch.cat([rounded(kind, group) for group in groups], dim=1)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@SIDES
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_the_nearest_of_their_scale(
    kind: type[EightBits], side: int, shape: tuple[int, int]
) -> None:
    matrix = weights(shape)
    found = held(kind, matrix, side).dense()
    by_rows = matrix if side == 0 else matrix.t()
    expected = rounded(kind, by_rows) if side == 0 else rounded(kind, by_rows).t()
    assert apart(found, expected) < 1e-6  # one rounding to float32
    largest = matrix.abs().amax(dim=1 - side, keepdim=True)
    assert ((found - matrix).abs() <= 1.001 * STEP[kind] * largest).all()


@SIDES
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_rounded_factors(
    kind: type[EightBits], side: int, count: int, shape: tuple[int, int]
) -> None:
    """The scale along the sum is in the token before that is rounded."""
    weight = held(kind, weights(shape), side)
    dense = weight.dense().double()
    scales = weight._scales()
    x, g = tokens(count + 1, shape[1]).requires_grad_(), tokens(count + 1, shape[0], 1)
    y = frozen_product(x, weight)
    (gradient,) = torch.autograd.grad(y, x, g)
    if side == 0:
        forward = by_token(kind, x.detach()) @ dense.t()
        backward = by_token(kind, g * scales) @ (dense / scales.double().unsqueeze(1))
    else:
        forward = by_token(kind, x.detach() * scales) @ (dense / scales.double()).t()
        backward = by_token(kind, g) @ dense
    # Sums of up to 1500 exact products in 32 bits, and two roundings by the scales.
    assert apart(y.detach(), forward) < 1e-6
    assert apart(gradient, backward) < 1e-6
    assert y[0].eq(0).all() and gradient[0].eq(0).all()
    if min(shape) > 1:
        assert y[-1].ne(0).any() and gradient[-1].ne(0).any(), "a small token is not lost"


@SIDES
def test_a_gradient_is_added_where_that_is_asked(kind: type[EightBits], side: int) -> None:
    weight, g = held(kind, weights((24, 16)), side), tokens(5, 24)
    onto = torch.ones(5, 16)
    assert weight.times_transposed(g, onto) is onto
    assert torch.equal(onto, 1 + weight.times_transposed(g))


def test_sums_of_int8_do_not_overflow() -> None:
    """Two products of the largest codes fill 16 bits, in which some instructions of CPUs add."""
    for length in (2, 3000):
        weight = held(Int8, torch.ones(32, length), 0)
        expected = torch.full((5, 32), float(length))
        assert apart(weight.times(torch.ones(5, length)), expected.double()) < 1e-6


def test_an_outlier_of_a_token_costs_its_group_alone() -> None:
    weight, x = held(Int8, torch.eye(300), 0), torch.full((1, 300), 0.1)
    x[0, 200] = 100.0
    found = weight.times(x)
    assert found[0, 128:256].count_nonzero() == 1
    torch.testing.assert_close(found[0, :128], x[0, :128])
    torch.testing.assert_close(found[0, 256:], x[0, 256:])


@SIDES
def test_shards_hold_what_the_whole_does(kind: type[EightBits], side: int) -> None:
    matrix = weights((96, 64))
    whole = held(kind, matrix, side)
    shards = [held(kind, part, side) for part in matrix.chunk(4, dim=side)]
    codes = torch.cat([shard._codes().view(torch.uint8) for shard in shards], side)
    assert torch.equal(codes, whole._codes().view(torch.uint8))
    assert torch.equal(torch.cat([shard._scales() for shard in shards]), whole._scales())
    # And what needs no sum over ranks is what the whole computes.
    x, g = tokens(5, 64), tokens(5, 96)
    if side == 0:
        assert apart(torch.cat([s.times(x) for s in shards], dim=1), whole.times(x)) < 1e-6
    else:
        joined = torch.cat([s.times_transposed(g) for s in shards], dim=1)
        assert apart(joined, whole.times_transposed(g)) < 1e-6


@KINDS
def test_what_it_takes(kind: type[EightBits]) -> None:
    """A byte for a weight, and four for each row, or for each column that ranks share."""
    shape = torch.Size((96, 64))
    assert kind(kind.empty(shape, torch.bfloat16, CPU)).nbytes == 96 * 64 + 4 * 96
    scales = 64 if kind is FP8 else 96
    assert kind(kind.empty(shape, torch.bfloat16, CPU, 1)).nbytes == 96 * 64 + 4 * scales


@SIDES
def test_pieces_make_the_same_bytes(
    kind: type[EightBits], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = weights((130, 65))
    whole = held(kind, matrix, side).parameter
    monkeypatch.setattr(packed, "AT_ONCE", 1024)
    assert torch.equal(held(kind, matrix, side).parameter, whole)


@KINDS
def test_a_token_that_is_not_finite_shows(kind: type[EightBits]) -> None:
    weight, x = held(kind, weights((24, 16)), 0), tokens(5, 16)
    for value in (float("nan"), float("inf")):
        x[2, 3] = value
        found = weight.times(x)
        assert not torch.isfinite(found[2]).any()
        assert torch.isfinite(found[[0, 1, 3, 4]]).all()


@KINDS
def test_a_matrix_without_values_can_be_planned_with(kind: type[EightBits]) -> None:
    with FakeTensorMode():
        weight = kind(kind.empty(torch.Size((24, 16)), torch.bfloat16, CPU))
        y = weight.times(torch.empty(3, 16, dtype=torch.bfloat16))
        assert y.shape == (3, 24) and weight.dense().shape == (24, 16)
