"""Which tensor went non-finite first: the skipped step is taken again and watched.

Weights did not change in a skipped step, and dropout draws the same masks for the same micro-batch,
so the replay meets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llama.fused.captured import RunCaptured
from llama.model.kept import Kept
from llama.model.transformer import Transformer
from llama.parallel.shares import own_values

AT_ONCE = 2**24
"""Elements that are looked at together: to look takes some bytes of memory for each."""


@dataclass(frozen=True)
class Finding:
    """The first tensor of a replay that held NaN or infinity, on one rank."""

    order: int
    """How many tensors were looked at before it: ranks look at the same ones in the same order."""
    what: str
    """As `the output of layers.3.attention.wq`, or `the gradient of ...`."""
    bad: int
    """Elements that are NaN or infinite."""
    size: int
    largest: float
    """The largest magnitude among its finite elements; 0 where there are none."""

    def text(self) -> str:
        return (
            f"{self.what} was the first to go non-finite: {self.bad:,} of {self.size:,} elements, "
            f"the largest magnitude among the others {self.largest:.4g}"
        )


UNSEEN = Finding(0, "", 0, 0, 0.0)
"""Of a rank that could not look at all tensors, and has found those finite that it did."""


class Watch:
    """Hooks on every module of `model`: outputs as they come, their gradients as they go back."""

    def __init__(self, model: nn.Module) -> None:
        self.finding: Finding | None = None
        self._looks = 0
        self._handles = [
            module.register_forward_hook(self._after(name or "the model"))
            for name, module in model.named_modules()
        ]

    def look(self, what: str, tensor: torch.Tensor) -> None:
        """Keep `tensor` as the finding, if it is the first that is not finite."""
        parts = tensor.reshape(-1).split(AT_ONCE) if self.finding is None else ()
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            bad, largest = 0, 0.0
            for part in parts:
                finite = part[torch.isfinite(part)]
                bad += part.numel() - finite.numel()
                largest = max(largest, float(finite.abs().max()) if finite.numel() else 0.0)
            self.finding = Finding(self._looks, what, bad, tensor.numel(), largest)
        self._looks += 1

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
                return
            self.look(f"the output of {name}", output.detach())
            if output.requires_grad:
                output.register_hook(
                    lambda g: self.look(f"the gradient at the output of {name}", g)
                )

        return hook


@contextmanager
def _keeping_little(model: nn.Module) -> Iterator[None]:
    """Within it no recorded pass has memory, and blocks keep their inputs at most, on every rank
    alike: what is watched is computed operation by operation, each of which would keep its own. Not
    under ZeRO-3, which has learnt in what order a step asks for its parameters."""
    if not isinstance(model, Transformer) or hasattr(model.output.weight, "ds_id"):
        yield
        return
    if isinstance(model.run_model, RunCaptured):
        model.run_model.forget()
    kept = model.kept
    model.keep([min(level, Kept.INPUT) for level in kept])
    try:
        yield
    finally:
        model.keep(kept)


def first_nonfinite(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    losses: Sequence[Callable[[], torch.Tensor]],
    exchanges: bool = False,
) -> Finding | None:
    """Replay `losses` (each computes one micro-batch's scaled loss anew) and their gradients; None
    if all of it is finite on this rank. No parameter's `.grad` is touched. Where ranks exchange
    within a pass (`exchanges`) none stops early, whatever it has found. Where memory does not hold
    the replay what was seen by then counts, or `UNSEEN`; `torch.OutOfMemoryError` where other ranks
    stand within the pass, and are to end as well."""
    watch = Watch(model)
    try:
        with _keeping_little(model):
            for name, parameter in model.named_parameters():
                watch.look(f"the weight {name}", own_values(parameter))
            for loss in losses:
                value = loss()
                watch.look("the loss", value.detach())
                gradients = torch.autograd.grad(value, list(trainable.values()), allow_unused=True)
                for name, gradient in zip(trainable, gradients, strict=True):
                    if gradient is not None:
                        watch.look(f"the gradient of {name}", gradient)
    except torch.OutOfMemoryError:
        if exchanges:
            raise
        return watch.finding or UNSEEN
    finally:
        watch.close()
    return watch.finding


def what_was_first(found: Sequence[Finding | None]) -> str:
    """In words, of what each rank has found."""
    looked = [(rank, f) for rank, f in enumerate(found) if f is not None and f != UNSEEN]
    if looked:
        _, rank, text = min((f.order, rank, f.text()) for rank, f in looked)
        return f"{text} (rank {rank})"
    if UNSEEN in found:
        return "what went non-finite first is not known: memory did not hold a pass that looks"
    return "the sum of the window's gradients overflowed, though each is finite"


def advice_on(skipped_in_a_row: int, spent_scale: float | None) -> str:
    """What to do about steps skipped for ever; `spent_scale` is a loss scale at its minimum."""
    if spent_scale is not None:
        return (
            f"the loss scale is at its minimum, {spent_scale:g}, and cannot fall further: train in "
            "bf16 (ds_configs/lora_bf16.json), or lower the learning rate"
        )
    return (
        f"{skipped_in_a_row} steps in a row were skipped: look at the data and the "
        "weights there, or lower the learning rate"
    )
