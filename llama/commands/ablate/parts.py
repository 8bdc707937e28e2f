"""The memory of a step by part: of a real one, followed, and of a plan, summed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from llama.engine import Engine
from llama.model.transformer import Transformer
from llama.planning.memory import Memory
from llama.planning.storages import LiveStorages, every_tensor

WEIGHTS, ACTIVATIONS, GRADIENTS, OPTIMIZER, OTHER = (
    "weights",
    "activations",
    "gradients",
    "optimizer",
    "buffers",
)
PARTS = (WEIGHTS, ACTIVATIONS, GRADIENTS, OPTIMIZER, OTHER)
PLANNED = {
    "weights": WEIGHTS,
    "trained": WEIGHTS,
    "gradients": GRADIENTS,
    "optimizer": OPTIMIZER,
    "step": OPTIMIZER,
    "kept": ACTIVATIONS,
    "working": ACTIVATIONS,
    "loss": ACTIVATIONS,
    "communication": OTHER,
    "libraries": OTHER,
}
"""The terms of a plan, by the part that they belong to."""


def parts_of(plan: Memory) -> dict[str, int]:
    """The terms of a plan summed by part."""
    found: Counter[str] = Counter()
    for term in plan.terms:
        found[PLANNED[term.name]] += term.bytes
    return {part: found[part] for part in PARTS}


class ByPart(LiveStorages):
    """Live storages by `PARTS`, and the most that each of them had."""

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()
        super().__init__(OTHER)

    def _look(self, workspace: int) -> None:
        super()._look(workspace)
        for part, size in self.live.items():
            if size > self.most[part]:
                self.most[part] = size

    @contextmanager
    def following(self, engine: Engine) -> Iterator[None]:
        """Within, one step of `engine` is followed. What is made in a forward or backward pass is
        an activation, until it turns out to be the gradient of a parameter; what DeepSpeed makes
        once all of those are there belongs to the gradients, up to the optimizer's own step."""
        model = cast(Transformer, engine.model)
        self._tell(engine, model)
        trained = [p for p in model.parameters() if p.requires_grad]
        waiting = set(map(id, trained))

        def gradient(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.relabel(parameter.grad, GRADIENTS)
            waiting.discard(id(parameter))
            if not waiting:
                self.kind = GRADIENTS
                waiting.update(map(id, trained))

        def begin(*_: Any) -> None:
            self.kind = ACTIVATIONS

        def end(_module: Any, _inputs: Any, loss: torch.Tensor) -> None:
            self.kind = OTHER  # DeepSpeed makes its buckets before the backward pass begins
            loss.register_hook(begin)

        hooks = [p.register_post_accumulate_grad_hook(gradient) for p in trained]
        hooks += [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
        optimizer = engine.inner_optimizer
        hooks += [
            optimizer.register_step_pre_hook(lambda *_: self._optimizer_steps(True)),
            optimizer.register_step_post_hook(lambda *_: self._optimizer_steps(False)),
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _optimizer_steps(self, begins: bool) -> None:
        if begins:
            self.relabel_all(ACTIVATIONS, GRADIENTS)  # the passes are over, their graphs are gone
        self.kind = OPTIMIZER if begins else OTHER

    def _tell(self, engine: Engine, model: Transformer) -> None:
        self.add([p.data for p in model.parameters()], WEIGHTS)
        self.add(engine.optimizer_tensors(), OPTIMIZER)
        self.add(every_tensor(), None)
        self.forget_peak()
