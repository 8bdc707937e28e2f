"""The passes of an optimizer step, taken again with less kept where memory ran out in them.

A backward pass that fails halfway leaves DeepSpeed's account of the gradients half written. So it
is told of none before all are there: `Window` adds them up, and their sum is handed over at the
end. Until then nothing has passed between ranks either: a rank whose memory ran out takes its
passes again by itself, and the others wait for it where gradients are summed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from llama.engine.window import Window

KeepLess = Callable[[int], bool]
"""Is told how often a step has run out of memory by now; has less kept and gives True, or False
where no less can be."""
T = TypeVar("T")


def begun_again(attempt: Callable[[], T], keep_less: KeepLess) -> T:
    """What `attempt` gives, begun again after each `torch.OutOfMemoryError` once there is less to
    keep. Raises the last one where there is not."""
    failures = 0
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError as error:
            said = str(error)  # and not the error: its frames hold the activations
        failures += 1
        if not keep_less(failures):
            raise torch.OutOfMemoryError(said)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def taken_apart(
    losses: Sequence[Callable[[], torch.Tensor]],
    factor: float,
    trained: Iterable[nn.Parameter],
    keep_less: KeepLess,
    engine: Any,
) -> torch.Tensor:
    """The sum of `losses`, one of each micro-batch, each of which can be computed anew. The
    gradients of `trained`, for that sum times `factor`, go to DeepSpeed's `engine`."""
    trained = list(trained)

    def attempt() -> tuple[torch.Tensor, Window]:
        total, together = torch.zeros((), device=trained[0].device), Window(trained)
        for compute in losses:
            loss = compute()
            total += loss.detach()
            together.add(loss * factor)
        return total, together

    total, together = begun_again(attempt, keep_less)
    hand_over(together, engine)
    return total


def hand_over(together: Window, engine: Any) -> None:
    """Give all the gradients in `together` to DeepSpeed's `engine`, as those of one backward pass.
    It looks for a backward pass behind the outcome of a call of its model alone."""
    model: Any = engine.module
    zero = torch.zeros((), device=engine.device)
    model.forward = lambda: together.with_held(zero)
    try:
        loss = engine()
    finally:
        del model.forward
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(loss, scale_wrt_gas=False)
