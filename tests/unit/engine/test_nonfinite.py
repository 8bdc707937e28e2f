"""What is said of a step that went non-finite, where not all of it could be looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llama.engine.nonfinite import UNSEEN, Finding, first_nonfinite, what_was_first


def found_in(model: nn.Module, *losses: float | None, exchanges: bool = False) -> Finding | None:
    """By micro-batches of these losses, None being one that memory does not hold."""

    def loss_of(value: float | None) -> torch.Tensor:
        if value is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(torch.ones(1, 2)).sum() * value

    makers = [lambda value=value: loss_of(value) for value in losses]
    return first_nonfinite(model, dict(model.named_parameters()), makers, exchanges)


def test_memory_that_does_not_hold_the_replay_ends_no_run() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert found_in(model, 1.0) is None
    assert found_in(model, 1.0, None) == UNSEEN
    with pytest.raises(torch.OutOfMemoryError):  # other ranks stand within the pass
        found_in(model, 1.0, None, exchanges=True)
    seen = found_in(model, torch.inf, None)
    assert seen is not None and "the loss" in seen.text()
    assert not model._forward_hooks and not model[0]._forward_hooks


def test_ranks_say_what_the_first_of_them_saw() -> None:
    late, early = Finding(7, "the loss", 1, 1, 0.0), Finding(3, "the weight x", 1, 4, 2.0)
    assert what_was_first([None, late, UNSEEN, early]).startswith("the weight x was the first")
    assert "(rank 3)" in what_was_first([None, late, UNSEEN, early])
    assert "not known: memory did not hold" in what_was_first([None, UNSEEN])
    assert "overflowed, though each is finite" in what_was_first([None, None])
