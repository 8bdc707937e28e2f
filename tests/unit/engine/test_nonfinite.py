"""What is said of a step that went non-finite, where not all of it could be looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llama.adapters.attach import trainable_parameters
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.engine import nonfinite
from llama.engine.nonfinite import UNSEEN, Finding, first_nonfinite, what_was_first
from llama.fused.captured import RunCaptured
from llama.fused.offload import HostInputs
from llama.model.kept import Kept
from tests.parity.test_packing import documents, trained_model


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


def test_what_is_looked_at_in_parts_is_found_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that to look at an embedding takes no gigabytes."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight[1:] = torch.tensor([[-7.0, torch.nan], [torch.inf, torch.inf]])
        model[1].weight[0] = 2.0
    whole = found_in(model, 1.0)
    assert whole is not None and (whole.bad, whole.size, whole.largest) == (3, 6, 7.0)
    for size in (1, 4, 5):
        monkeypatch.setattr(nonfinite, "AT_ONCE", size)
        assert found_in(model, 1.0) == whole


def test_memory_for_the_replay_is_that_of_what_a_step_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is watched would keep more than that: blocks compute again, and no graph has any. It
    begins before the weights are looked at, and ends whatever happens."""
    model = trained_model(0.0)
    levels = [*Kept][-len(model.layers) :]
    model.keep(levels)
    run = RunCaptured(model, trainable_parameters(model), HostInputs())
    model.run_model, forgotten, seen = run, [], []
    monkeypatch.setattr(run, "forget", lambda: forgotten.append(1) or 0)
    monkeypatch.setattr(nonfinite, "own_values", lambda p: seen.append(list(forgotten)) or p.data)
    inputs = model_inputs(make_batch([documents([5, 9])], 0), torch.device("cpu"))
    within: list[list[Kept]] = []

    def loss(full: bool) -> torch.Tensor:
        within.append(model.kept)
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(**inputs)

    trained = trainable_parameters(model)
    assert first_nonfinite(model, trained, [lambda: loss(False)] * 2) is None
    assert first_nonfinite(model, trained, [lambda: loss(True)]) == UNSEEN
    assert within == [[min(level, Kept.INPUT) for level in levels]] * 3
    assert model.kept == levels and seen[0] == [1] and forgotten == [1, 1]


def test_ranks_say_what_the_first_of_them_saw() -> None:
    late, early = Finding(7, "the loss", 1, 1, 0.0), Finding(3, "the weight x", 1, 4, 2.0)
    assert what_was_first([None, late, UNSEEN, early]).startswith("the weight x was the first")
    assert "(rank 3)" in what_was_first([None, late, UNSEEN, early])
    assert "not known: memory did not hold" in what_was_first([None, UNSEEN])
    assert "overflowed, though each is finite" in what_was_first([None, None])
