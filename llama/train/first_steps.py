"""The check that a run really trains what it says it trains, made in its first steps.

B is zero at the start, so A's gradient is exactly zero in the first step: every B must have moved
after one step that counts, every A after two. An adapter that does not is a run that goes through
and is wrong (huggingface/peft#1402, microsoft/LoRA#120), so it stops and names the tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from llama.engine import Engine
from llama.engine.state import Tensors
from llama.errors import TrainingError


class FirstStepsCheck:
    """Watches the gradients and values of every trainable tensor until all are seen to train."""

    STEPS = 3
    """Steps with an update at a rate above zero before the verdict: one for B, one more for A,
    and one to spare for an update too small for half precision."""

    def __init__(self, trainable: dict[str, nn.Parameter], values: Callable[[], Tensors]) -> None:
        """`values` gives what the tensors hold now, by name: under ZeRO-3 they do not say."""
        self._trainable = trainable
        self._values = values
        self._before = values()
        self._had_gradient = {
            name: torch.zeros((), dtype=torch.bool, device=p.device)
            for name, p in trainable.items()
        }
        self._hooks = [p.register_hook(self._watch(name)) for name, p in trainable.items()]
        self.tensors = len(self._before)
        self._counted = 0
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
        self._counted += 1
        if self._counted < self.STEPS:
            return []
        self.done = True
        for hook in self._hooks:
            hook.remove()
        return self._verdict()

    def _verdict(self) -> list[str]:
        problems = []
        for name, value in self._values().items():
            had = bool(self._had_gradient[name])
            moved = not torch.equal(value, self._before[name])
            if not (had and moved):
                what = "has had no gradient" if not had else "has had a gradient but has not moved"
                problems.append(
                    f"{name} {what} after {self._counted} optimizer steps: it is not being trained"
                )
        self._before.clear()
        return problems


def optimizer_state_bytes(engine: Engine) -> int:
    """Bytes that the optimizer holds on this rank, once the first step has made its states: at most
    a float32 master and two moments of what this rank optimizes of the adapter, and nothing of the
    base, or `TrainingError`."""
    held, most = engine.optimizer_state_bytes(), 12 * engine.optimized_elements
    if held > most:
        raise TrainingError(
            f"the optimizer holds {held:,} bytes, and the adapter's states need {most:,}: "
            "something other than the adapter is being optimized"
        )
    return held
