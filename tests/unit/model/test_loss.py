"""The chunked, summed loss against torch's own on whole logits in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama.model import loss
from llama.model.loss import summed_cross_entropy
from llama.parallel.mesh import SINGLE
from tests.support.closeness import assert_close, sums_of

POSITIONS, DIM, VOCABULARY = 23, 16, 50
LIMIT = sums_of(DIM + VOCABULARY + POSITIONS)
"""A logit is a sum over DIM, its log-sum-exp one over VOCABULARY, the loss one over POSITIONS; of a
gradient the sums are the same."""


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, DIM, generator=generator)
    weight = torch.randn(VOCABULARY, DIM, generator=generator)
    labels = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    labels[0], labels[1] = 0, VOCABULARY - 1
    return hidden, weight, labels


@pytest.mark.parametrize("rows", [1, 2, 7, POSITIONS, 1000])
@pytest.mark.parametrize("trainable", [False, True])
def test_any_chunk_gives_torch_s_loss_and_gradients(
    rows: int, trainable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", rows * VOCABULARY)
    hidden, weight, labels = case()
    wide_hidden, wide_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.cross_entropy(wide_hidden @ wide_weight.t(), labels, reduction="sum")
    (0.3 * expected).backward()
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    found = summed_cross_entropy(hidden, weight, labels, SINGLE)
    (0.3 * found).backward()
    assert found.dtype == torch.float32 and found.shape == ()
    assert_close(found, expected, LIMIT)
    assert hidden.grad is not None and wide_hidden.grad is not None
    assert_close(hidden.grad, wide_hidden.grad, LIMIT)
    if trainable:
        assert weight.grad is not None and wide_weight.grad is not None
        assert_close(weight.grad, wide_weight.grad, LIMIT)
    else:
        assert weight.grad is None


def test_no_more_logits_than_asked_for_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 4 * VOCABULARY)
    sizes = []
    chunk = loss._chunk

    def watched(hidden: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(hidden.shape[0])
        return chunk(hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loss, "_chunk", watched)
    summed_cross_entropy(*case(), SINGLE)
    assert sizes == [4, 4, 4, 4, 4, 3]


def test_nothing_supervised_is_zero_with_zero_gradients() -> None:
    hidden, weight, labels = case()
    hidden.requires_grad_()
    weight.requires_grad_()
    found = summed_cross_entropy(hidden[:0], weight, labels[:0], SINGLE)
    found.backward()
    assert found == 0
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_large_logits_stay_finite() -> None:
    hidden, weight, labels = case()
    found = summed_cross_entropy(1e4 * hidden, weight, labels, SINGLE)
    expected = F.cross_entropy(1e4 * hidden.double() @ weight.double().t(), labels, reduction="sum")
    assert_close(found, expected, LIMIT)


def test_no_gradient_is_formed_where_none_is_wanted() -> None:
    hidden, weight, labels = case()
    with torch.no_grad():
        found = summed_cross_entropy(hidden.requires_grad_(), weight, labels, SINGLE)
    assert not found.requires_grad
    assert_close(found, summed_cross_entropy(hidden, weight, labels, SINGLE), LIMIT)
