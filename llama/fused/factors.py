"""The adapters of one call of a fused block: what they add, and their gradients.

Shapes: T tokens, R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch

from llama.fused.paths import Path, hidden_each, input_gradients_, output_gradients
from llama.parallel.dropout import draw_seed, from_row
from llama.parallel.side_path import LowRank

Names = tuple[str, ...]
Hidden = dict[str, torch.Tensor]
"""By the layer's name, what its adapter makes of the layer's input: `A x`, `[T, R]`."""


@dataclass(frozen=True)
class Factors:
    """An adapter's tensors in the type of the activations, and the seed of its mask."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    seed: torch.Tensor | None


class Adapted:
    """By the names of the layers that they are on."""

    def __init__(self, adapters: Mapping[str, LowRank], training: bool, x: torch.Tensor) -> None:
        """For activations like `x`; draws the seeds of the masks, in the order of `adapters`."""
        dropout = next((path.dropout for path in adapters.values()), 0.0)
        self.p = dropout if training else 0.0
        self.factors = {
            name: Factors(
                path.a.detach().to(x.dtype),
                path.b.detach().to(x.dtype),
                path.scale,
                draw_seed(x.device) if self.p else None,
            )
            for name, path in adapters.items()
        }
        self.grads_a: dict[str, torch.Tensor] = {}
        self.grads_b: dict[str, torch.Tensor] = {}

    def on(self, names: Names) -> Names:
        """Those of `names` that have one."""
        return tuple(name for name in names if name in self.factors)

    def matrices(self, names: Names) -> Path:
        """The A of each."""
        return tuple(self.factors[name].a for name in names)

    def seeds(self, names: Names) -> Path:
        found = (self.factors[name].seed for name in names)
        return tuple(seed for seed in found if seed is not None)

    def see(self, names: Names, x: torch.Tensor, hidden: Hidden) -> None:
        """Have those on `names` see their input `x`, if they have not yet."""
        new = tuple(name for name in self.on(names) if name not in hidden)
        if new:
            found = hidden_each(x, self.matrices(new), self.seeds(new), self.p)
            hidden.update(zip(new, found, strict=True))

    def add_to(self, name: str, y: torch.Tensor, hidden: Hidden) -> torch.Tensor:
        """`y`, the layer's output, and in it what the adapter adds, if there is one."""
        if name in self.factors:
            factors = self.factors[name]
            y.addmm_(hidden[name], factors.b.t(), alpha=factors.scale)
        return y

    def paths(self, names: Names, hidden: Hidden) -> tuple[tuple[Path, ...], tuple[float, ...]]:
        """What is added to the outputs of `names` by whoever reads them next, and the scales."""
        found = [self.factors.get(name) for name in names]
        paths = tuple(
            (hidden[name], factors.b) if factors else ()
            for name, factors in zip(names, found, strict=True)
        )
        return paths, tuple(factors.scale if factors else 1.0 for factors in found)

    def output_gradients(self, names: Names, grads: Path, hidden: Hidden) -> Path:
        """From the gradients of the layers' outputs that of each adapter's `A x`, `[T, R]`; leaves
        that of its B, and takes what it saw out of `hidden`."""
        parts = []
        for name, grad in zip(names, grads, strict=True):
            if name in self.factors:
                factors = self.factors[name]
                part, self.grads_b[name] = output_gradients(
                    grad, hidden.pop(name), factors.b, factors.scale
                )
                parts.append(part)
        return tuple(parts)

    def input_gradients(
        self, names: Names, x: torch.Tensor, onto: Path, norm: Path, parts: Path
    ) -> None:
        """Leaves the gradient of each A; adds those to the input to `onto`. As `input_gradients_`,
        where some of `names` have adapters."""
        if names := self.on(names):
            matrices, seeds = self.matrices(names), self.seeds(names)
            found = input_gradients_(x, onto, norm, parts, matrices, seeds, self.p)
            self.grads_a.update(zip(names, found[len(onto) :], strict=True))

    def gradients(self) -> Iterator[torch.Tensor]:
        """Those of A and B of each, in order."""
        for name in self.factors:
            yield self.grads_a[name]
            yield self.grads_b[name]

    def from_row(self, row: int) -> Adapted:
        """The same for the tokens from `row` on alone, with no gradients yet."""
        found = copy(self)
        found.grads_a, found.grads_b = {}, {}
        found.factors = {
            name: factors
            if factors.seed is None
            else replace(factors, seed=from_row(factors.seed, row))
            for name, factors in self.factors.items()
        }
        return found
