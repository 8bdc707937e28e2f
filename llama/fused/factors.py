"""The adapters of one call of a fused block: what they add, and their gradients.

Shapes: T tokens, R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch

from llama.fused.own_rows import total
from llama.fused.paths import (
    Path,
    add_with_path_,
    hidden_each,
    input_gradients_,
    output_gradients,
)
from llama.parallel.dropout import draw_seed, further
from llama.parallel.side_path import LowRank
from llama.parallel.sums import Sums

Names = tuple[str, ...]
Hidden = dict[str, torch.Tensor]
"""By the layer's name, what its adapter makes of the layer's input: `A x`, `[T, R]`."""


@dataclass(frozen=True)
class Factors:
    """An adapter's tensors in the type of the activations, and the seed of the mask that its
    layer's input is under."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    seed: torch.Tensor | None


class Adapted:
    """By the names of the layers that they are on."""

    def __init__(
        self,
        adapters: Mapping[str, LowRank],
        inputs: Mapping[Names, int],
        training: bool,
        x: torch.Tensor,
    ) -> None:
        """For activations like `x`. Draws the seeds of the masks, one for each of `inputs` that has
        adapters: by the names of the layers that read it, in the order in which they are called,
        at which column of the whole input this rank's share begins."""
        dropout, row = next(((path.dropout, path.row) for path in adapters.values()), (0.0, 0))
        self.p = dropout if training else 0.0
        self.factors: dict[str, Factors] = {}
        for readers, column in inputs.items():
            found = {name: adapters[name] for name in readers if name in adapters}
            seed = draw_seed(x.device) if found and self.p else None
            if seed is not None and (row or column):
                seed = further(seed, row, column)
            for name, path in found.items():
                a, b = (factor.detach().to(x.dtype) for factor in (path.a, path.b))
                self.factors[name] = Factors(a, b, path.scale, seed)
        self.grads_a: dict[str, torch.Tensor] = {}
        self.grads_b: dict[str, torch.Tensor] = {}

    def on(self, names: Names) -> Names:
        """Those of `names` that have one."""
        return tuple(name for name in names if name in self.factors)

    def matrices(self, names: Names) -> Path:
        """The A of each."""
        return tuple(self.factors[name].a for name in names)

    def seed(self, names: Names) -> Path:
        """That of the one input of those on `names`, where it is under a mask."""
        found = next((self.factors[name].seed for name in names), None)
        return () if found is None else (found,)

    def see(self, names: Names, x: torch.Tensor, hidden: Hidden) -> None:
        """Have those on `names` see their input `x`, if they have not yet."""
        new = tuple(name for name in self.on(names) if name not in hidden)
        if new:
            found = hidden_each(x, self.matrices(new), self.seed(new), self.p)
            hidden.update(zip(new, found, strict=True))

    def add_to(
        self, name: str, y: torch.Tensor, hidden: Hidden, rows: slice = slice(None)
    ) -> torch.Tensor:
        """`y`, some rows of the layer's output, and in it what its adapter, if any, adds."""
        if name in self.factors:
            factors = self.factors[name]
            y.addmm_(hidden[name][rows], factors.b.t(), alpha=factors.scale)
        return y

    def add_to_sum(
        self, name: str, y: torch.Tensor, x: torch.Tensor, hidden: Hidden
    ) -> torch.Tensor:
        """The sum of `x` and `add_to(name, y, hidden)`, in the place of `y`."""
        if name not in self.factors:
            return y.add_(x)
        factors = self.factors[name]
        return add_with_path_(y, x, (hidden[name], factors.b), factors.scale)

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
        given = {
            name: grad for name, grad in zip(names, grads, strict=True) if name in self.factors
        }
        if not given:
            return ()
        factors = [self.factors[name] for name in given]
        parts, grads_b = output_gradients(
            tuple(given.values()),
            tuple(hidden.pop(name) for name in given),
            tuple(found.b for found in factors),
            tuple(found.scale for found in factors),
        )
        self.grads_b.update(zip(given, grads_b, strict=True))
        return parts

    def input_gradients(
        self,
        names: Names,
        x: torch.Tensor,
        onto: Path,
        norm: Path,
        parts: Path,
        rows: slice = slice(None),
    ) -> None:
        """Leaves the gradient of each A; adds those to the input, and what else is in `onto`, to
        its first tensor. As `input_gradients_`, where some of `names` have adapters; by some `rows`
        alone, of which `parts` are."""
        if names := self.on(names):
            matrices, seed = self.matrices(names), self.seed(names)
            given = x[rows], tuple(y[rows] for y in onto), (*(y[rows] for y in norm[:1]), *norm[1:])
            found = input_gradients_(*given, parts, matrices, seed, self.p, rows.start or 0)
            self.grads_a.update(zip(names, found[len(onto[:1]) :], strict=True))
        else:
            for other in onto[1:]:
                onto[0].add_(other)

    def begin_sum(self, sums: Sums, cut: Names) -> Callable[[], None]:
        """Begin to sum over tensor-parallel ranks the gradients of what each has whole: B of `cut`,
        layers whose input is cut over the ranks, and A of all others. They are there once what this
        gives was called."""
        places = {name: self.grads_b if name in cut else self.grads_a for name in self.factors}
        shares = [grads[name] for name, grads in places.items()]
        if sums.alone or not shares:
            return lambda: None
        end = sums.begin(shares)

        def take() -> None:
            for (name, grads), grad in zip(places.items(), total(end(), shares), strict=True):
                grads[name] = grad

        return take

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
            else replace(factors, seed=further(factors.seed, row=row))
            for name, factors in self.factors.items()
        }
        return found
