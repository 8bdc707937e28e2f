"""Dropout whose mask does not depend on how the model is sharded."""

from __future__ import annotations

import pytest
import torch

from llama.parallel.dropout import (
    _Dropped,
    draw_seed,
    dropout,
    dropped,
    further,
    keep_mask,
    one_mask,
)
from llama.parallel.mesh import SINGLE, TensorParallel
from tests.support.closeness import assert_close, sums_of

TOKENS, WIDTH = 64, 48


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 500)
    found = dropout(x, p, SINGLE, sharded=False)
    kept = found != 0
    assert_close(found[kept].unique(), torch.tensor([1 / (1 - p)]), sums_of(2))
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(1 - kept.double().mean() - p) < 5 * deviation
    for rows in (kept.double().mean(0), kept.double().mean(1)):  # nor does it favour a row
        assert rows.std() < 1.5 * (p * (1 - p) / 400) ** 0.5


def test_none_is_the_identity_and_draws_nothing() -> None:
    x = torch.ones(3, 4)
    before = torch.get_rng_state()
    assert dropout(x, 0.0, SINGLE, sharded=False) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_has_the_mask() -> None:
    """And 1 / (1 - 0.5), which is exactly 2."""
    x = torch.randn(TOKENS, WIDTH).requires_grad_()
    found = dropout(x, 0.5, SINGLE, sharded=False)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (found != 0) * 2.0)


@pytest.mark.parametrize("size", [2, 4])
def test_shards_drop_what_one_process_would(size: int) -> None:
    """And the generators stay in step, so that the next mask is everybody's too."""
    x = torch.randn(TOKENS, WIDTH)
    torch.manual_seed(7)
    expected = dropout(x, 0.3, SINGLE, sharded=False)
    after = torch.get_rng_state()
    shards = []
    for rank, part in enumerate(x.chunk(size, dim=1)):
        torch.manual_seed(7)
        shards.append(dropout(part, 0.3, TensorParallel(rank, size), sharded=True))
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(torch.cat(shards, dim=1), expected)


def test_replicated_inputs_get_one_mask_on_every_rank() -> None:
    x, found = torch.randn(TOKENS, WIDTH), []
    for rank in range(2):
        torch.manual_seed(7)
        found.append(dropout(x, 0.3, TensorParallel(rank, 2), sharded=False))
    assert torch.equal(*found)


# Masks that are computed, not stored (on CUDA, compiled)

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_computed_mask_drops_a_share_p_everywhere(p: float) -> None:
    torch.manual_seed(0)
    shape = torch.Size((400, 512))
    first, second = (~keep_mask(draw_seed(CPU), shape, p) for _ in range(2))
    for share, chance in ((first, p), (second, p), (first & second, p * p)):
        deviation = (chance * (1 - chance) / first.numel()) ** 0.5
        assert abs(share.double().mean() - chance) < 4 * deviation
    for gone in (first, second):
        for along, count in ((0, 400), (1, 512)):
            spread = gone.double().mean(along).std() / (p * (1 - p) / count) ** 0.5
            assert 0.85 < spread < 1.15, "rows and columns differ as chance has them differ"
        for one, next_one in ((gone[1:], gone[:-1]), (gone[:, 1:], gone[:, :-1])):
            both = (one & next_one).double().mean()
            assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / one.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_any_two_rows_or_columns_of_a_computed_mask_are_strangers(p: float) -> None:
    """Keys whose ratio is a small fraction would drop the same elements: there are hardly any."""
    gone = ~keep_mask(torch.tensor([987654321, 0]), torch.Size((1024, 1024)), p)
    for side in (gone.double(), gone.t().double()):
        first, second = torch.triu_indices(1024, 1024, offset=1)
        both = (side @ side.t())[first, second]
        deviation = (1024 * p * p * (1 - p * p)) ** 0.5
        far = ((both - 1024 * p * p).abs() > 5 * deviation).double().mean()
        assert far < 1e-3, "of half a million pairs"
        assert 0.9 < (both - 1024 * p * p).std() / deviation < 1.1
        triples = (side[:-2] * side[1:-1] * side[2:]).sum(1)
        assert abs(triples.mean() - 1024 * p**3) < 5 * (p**3) ** 0.5


def test_either_half_of_a_seed_makes_another_mask() -> None:
    shape = torch.Size((200, 512))
    masks = [keep_mask(torch.tensor([s, 0]), shape, 0.5) for s in (5, 6, 5 + 2**32)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs((masks[i] == masks[j]).double().mean() - 0.5) < 4 * 0.5 / 102400**0.5


@pytest.mark.parametrize("size", [2, 4])
def test_shards_compute_their_part_of_the_mask(size: int) -> None:
    seed, width = torch.tensor([123456789012345, 0]), WIDTH // size
    whole = keep_mask(seed, torch.Size((TOKENS, WIDTH)), 0.3)
    parts = [
        keep_mask(seed, torch.Size((TOKENS, width)), 0.3, (0, rank * width)) for rank in range(size)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    for row, rank in ((0, 1), (5, size - 1), (2**31 - 100, 1)):  # by the seed alone
        shape = torch.Size((TOKENS, width))
        expected = keep_mask(seed, shape, 0.3, (row, rank * width))
        moved = further(further(seed, column=rank * width), row=row)
        assert torch.equal(keep_mask(moved, shape, 0.3), expected)


def test_tiles_of_the_tokens_compute_their_part_of_the_mask() -> None:
    """Far rows too."""
    for first in (0, 400_000):
        seed = further(draw_seed(CPU), row=first)
        whole = keep_mask(seed, torch.Size((TOKENS, WIDTH)), 0.3)
        parts = [
            keep_mask(further(seed, row=row), torch.Size((min(3, TOKENS - row), WIDTH)), 0.3)
            for row in range(0, TOKENS, 3)
        ]
        assert torch.equal(torch.cat(parts), whole) and 0 < whole.sum() < whole.numel()


def test_the_gradient_goes_through_the_computed_mask() -> None:
    x = torch.randn(TOKENS, WIDTH).requires_grad_()
    seed = draw_seed(CPU)
    found: torch.Tensor = _Dropped.apply(x, seed, 0.5, (0, 0))  # type: ignore[assignment]
    assert torch.equal(found, dropped(x, seed, 0.5))
    found.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, (found != 0) * 2.0)


def test_activation_checkpointing_draws_the_same_seed_again() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = draw_seed(CPU), draw_seed(CPU)
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(CPU), first) and not torch.equal(first, second)


def test_layers_that_read_one_input_see_one_mask() -> None:
    """As long as they are called together, and no others. ZeRO-3 gives each a tensor of its own."""
    x = torch.ones(TOKENS, WIDTH)
    torch.manual_seed(7)
    with one_mask():
        first, second = (dropout(t, 0.3, SINGLE, sharded=False) for t in (x, x.clone()))
    assert torch.equal(first, second)
    assert not torch.equal(dropout(x, 0.3, SINGLE, sharded=False), first)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.3, SINGLE, sharded=False), first)
