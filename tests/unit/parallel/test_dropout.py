"""Dropout whose mask does not depend on how the model is sharded."""

from __future__ import annotations

import pytest
import torch

from llama.parallel.dropout import dropout
from llama.parallel.mesh import SINGLE, TensorParallel

TOKENS, WIDTH = 64, 48


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 500)
    found = dropout(x, p, SINGLE, sharded=False)
    kept = found != 0
    torch.testing.assert_close(found[kept].unique(), torch.tensor([1 / (1 - p)]))
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
