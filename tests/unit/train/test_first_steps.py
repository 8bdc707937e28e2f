"""The check of the first steps: it passes what trains and names what does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llama.adapters.attach import attach, initialise, trainable_parameters
from llama.checkpoint import RunState
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.data.types import Example
from llama.errors import TrainingError
from llama.methods.method import Watched
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.train.first_steps import FirstSteps, FirstStepsCheck, optimizer_state_bytes
from tests.support.model_files import TINY, random_state

CPU = torch.device("cpu")
A, B = "layers.0.attention.wq.lora.a", "layers.0.attention.wq.lora.b"
TOKENS = [7 * i % TINY.vocab_size for i in range(20)]
INPUTS = model_inputs(make_batch([[Example(TOKENS, TOKENS, 1)]], 0), CPU)


def adapted() -> Transformer:
    model = Transformer(TINY)
    model.load_state_dict(random_state(TINY))
    attach(model, LoRAOptions(4, 8.0, 0.0, ("wq", "wv")))
    initialise(model, 0, CPU)
    return model


def watching(trainable: dict[str, nn.Parameter]) -> FirstStepsCheck:
    def values() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainable.items()}

    return FirstStepsCheck(trainable, Watched(values, lambda flags: flags))


def verdict(
    model: Transformer,
    optimized: list[nn.Parameter] | None = None,
    steps: int = FirstStepsCheck.STEPS,
) -> list[str]:
    """What the check says of `steps` steps."""
    check = watching(trainable_parameters(model))
    optimizer = torch.optim.AdamW(optimized or list(trainable_parameters(model).values()), lr=1e-3)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(**INPUTS).backward()
        optimizer.step()
        found += check.after_step(applied=True, learning_rate=1e-3)
    assert check.done == (steps >= check.STEPS)
    return found


def test_a_healthy_run_passes() -> None:
    assert verdict(adapted()) == []


def test_a_tensor_cut_off_from_the_graph_is_named() -> None:
    model = adapted()
    model.layers[0].attention.wq.lora.forward = lambda x, base_output: base_output
    problems = verdict(model)
    assert [problem.split()[0] for problem in problems] == [A, B]
    assert all("has had no gradient" in problem for problem in problems)


def test_a_tensor_that_the_optimizer_was_not_given_is_named() -> None:
    model = adapted()
    given = [p for name, p in trainable_parameters(model).items() if name != A]
    (problem,) = verdict(model, given)
    assert problem.startswith(f"{A} has had a gradient but has not moved after 3 optimizer steps")


def test_a_tensor_frozen_after_all_is_named() -> None:
    """Frozen behind the check's back, as a hook or a wrapper might."""
    model = adapted()
    trainable = trainable_parameters(model)
    check = watching(trainable)
    trainable[B].requires_grad_(False)
    optimizer = torch.optim.AdamW(list(trainable.values()), lr=1e-3)
    problems = []
    for _ in range(FirstStepsCheck.STEPS):
        optimizer.zero_grad()
        model(**INPUTS).backward()
        optimizer.step()
        problems += check.after_step(applied=True, learning_rate=1e-3)
    # A's gradient is a product with B, which stays at zero: neither of them trains.
    assert [problem.split()[0] for problem in problems] == [A, B]


def test_no_verdict_before_enough_steps() -> None:
    assert verdict(adapted(), steps=FirstStepsCheck.STEPS - 1) == []


def test_skipped_steps_and_a_rate_of_zero_do_not_count() -> None:
    """Nothing moves here: only steps that should have moved it may say so."""
    model = adapted()
    check = watching(trainable_parameters(model))
    for _ in range(5):
        assert check.after_step(applied=False, learning_rate=1e-3) == []
        assert check.after_step(applied=True, learning_rate=0.0) == []
    for _ in range(FirstStepsCheck.STEPS - 1):
        assert check.after_step(applied=True, learning_rate=1e-3) == []
    problems = check.after_step(applied=True, learning_rate=1e-3)
    assert len(problems) == len(trainable_parameters(model))
    assert check.after_step(applied=True, learning_rate=1e-3) == []


def test_it_lets_go_of_the_model_once_it_has_spoken() -> None:
    model = adapted()
    verdict(model)
    assert not any(p._backward_hooks for p in trainable_parameters(model).values())


def test_the_optimizer_may_hold_twelve_bytes_an_element_and_no_more() -> None:
    """No slack: one frozen tensor of a small model is not much."""

    def engine(held: int) -> Any:
        return SimpleNamespace(optimized_elements=1000, optimizer_state_bytes=lambda: held)

    assert optimizer_state_bytes(engine(12_000)) == 12_000
    assert optimizer_state_bytes(engine(8_000)) == 8_000  # float32 parameters that are the masters
    with pytest.raises(TrainingError, match="holds 12,004 bytes, and the states"):
        optimizer_state_bytes(engine(12_004))


def looked_at(steps: list[bool]) -> tuple[FirstSteps, Any]:
    """A run of `steps`, true where one was applied, which each move what trains."""
    model = adapted()
    trainable = trainable_parameters(model)

    def values() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainable.items()}

    engine: Any = SimpleNamespace(trainable=trainable, steps=0, skipped=0, optimized_elements=1)
    engine.optimizer_state_bytes = lambda: 0
    method: Any = SimpleNamespace(watched=lambda _: Watched(values, lambda flags: flags))
    looking = FirstSteps(engine, method, RunState(), {})
    optimizer = torch.optim.AdamW(list(trainable.values()), lr=1e-3)
    for applied in steps:
        optimizer.zero_grad()
        model(**INPUTS).backward()
        optimizer.step()
        engine.steps, engine.skipped = engine.steps + 1, engine.skipped + (not applied)
        step: Any = SimpleNamespace(applied=applied, learning_rate=1e-3)
        looking.after(step, lambda _: None)
    return looking, engine


def test_a_run_of_which_every_step_was_skipped_has_trained_nothing() -> None:
    looking, _ = looked_at([False, False])
    with pytest.raises(TrainingError, match="every one of the 2 steps was skipped"):
        looking.at_the_end()


def test_a_run_that_was_too_short_to_tell_says_so() -> None:
    looking, _ = looked_at([True, False, True])
    (line,) = looking.at_the_end()
    assert line.startswith("steps with an update at a rate above zero: 2; that every tensor trains")
    assert looked_at([True, False, True, True])[0].at_the_end() == []
