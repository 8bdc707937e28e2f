"""The check that a run really trains what it says it trains, made in its first steps.

Of an adapter, B is zero at the start, so A's gradient is exactly zero in the first step: every B
must have moved after one step that counts, every A after two. A model's own weights move in the
first. What does not is a run that goes through and is wrong (huggingface/peft#1402,
microsoft/LoRA#120), so it stops and names the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llama.checkpoint import RunState
from llama.engine import Engine, Step
from llama.errors import TrainingError
from llama.methods.method import Method, Watched


class FirstStepsCheck:
    """Watches the gradients and values of every trainable tensor until all are seen to train."""

    STEPS = 3
    """Steps with an update at a rate above zero before the verdict: one for B, one more for A,
    and one to spare for an update too small for half precision."""

    def __init__(self, trainable: dict[str, nn.Parameter], watched: Watched) -> None:
        """`watched` says what the tensors hold: under ZeRO-3 they do not."""
        self._watched = watched
        self._before = watched.values()
        self._had_gradient = {
            name: torch.zeros((), dtype=torch.bool, device=p.device)
            for name, p in trainable.items()
        }
        self._hooks = [p.register_hook(self._watch(name)) for name, p in trainable.items()]
        self.tensors = len(self._before)
        self.counted = 0
        """Steps so far that should have moved every tensor."""
        self.done = False

    def _watch(self, name: str):
        seen = self._had_gradient[name]

        def hook(gradient: torch.Tensor) -> None:
            seen.logical_or_(gradient.any())

        return hook

    def after_step(self, applied: bool, learning_rate: float) -> list[str]:
        """Call after every step. Gives one line for each tensor that does not train, once enough
        steps have counted; before that, and when all is well, nothing."""
        if self.done or not applied or learning_rate <= 0:
            return []
        self.counted += 1
        if self.counted < self.STEPS:
            return []
        self.done = True
        for hook in self._hooks:
            hook.remove()
        return self._verdict()

    def _verdict(self) -> list[str]:
        problems = []
        flags = self._watched.agreed(torch.stack(list(self._had_gradient.values())))
        had_gradient = dict(zip(self._had_gradient, flags.tolist(), strict=True))
        for name, value in self._watched.values().items():
            had = had_gradient[name]
            moved = not torch.equal(value, self._before[name])
            if not (had and moved):
                what = "has had no gradient" if not had else "has had a gradient but has not moved"
                problems.append(
                    f"{name} {what} after {self.counted} optimizer steps: it is not being trained"
                )
        self._before.clear()
        return problems


class FirstSteps:
    """What is looked at in the first steps of one run, and whether there were any, at its end."""

    def __init__(
        self, engine: Engine, method: Method, state: RunState, summary: dict[str, Any]
    ) -> None:
        self._engine, self._state, self._summary = engine, state, summary
        self._check = (
            None if state.trains else FirstStepsCheck(engine.trainable, method.watched(engine))
        )

    def after(self, step: Step, detail: Callable[[str], None]) -> None:
        """Call after every step; `detail` takes a line for the log. Raises `TrainingError`."""
        check, summary = self._check, self._summary
        if check is not None:
            problems = check.after_step(step.applied, step.learning_rate)
            if problems:
                raise TrainingError("\n".join(problems))
            if check.done:
                summary["first_steps"] = {"step": self._engine.steps, "tensors": check.tensors}
                self._state.trains, self._check = True, None
        if "optimizer_state_bytes" not in summary:
            summary["optimizer_state_bytes"] = held = optimizer_state_bytes(self._engine)
            detail(f"optimizer states: {held:,} bytes on this rank")

    def at_the_end(self) -> list[str]:
        """Raises `TrainingError` where the run has trained nothing; a line where it had too few
        steps to tell."""
        engine, check = self._engine, self._check
        if engine.skipped == engine.steps:
            raise TrainingError(
                f"every one of the {engine.steps} steps was skipped, for the reasons that are said "
                "above and in metrics.jsonl: nothing was trained"
            )
        if check is None:
            return []
        return [
            f"steps with an update at a rate above zero: {check.counted}; that every tensor trains "
            f"is seen after {check.STEPS}, and was not checked here"
        ]


def optimizer_state_bytes(engine: Engine) -> int:
    """Bytes that the optimizer holds on this rank, once the first step has made its states: at most
    a float32 master and two moments of each element that this rank optimizes, or
    `TrainingError`."""
    held, most = engine.optimizer_state_bytes(), 12 * engine.optimized_elements
    if held > most:
        raise TrainingError(
            f"the optimizer holds {held:,} bytes, and the states of what trains need {most:,}: "
            "something else is being optimized"
        )
    return held
