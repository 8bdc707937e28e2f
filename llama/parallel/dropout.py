"""Dropout that draws the same mask however the model is sharded.

There are two ways to the same end. On a CPU each rank draws random numbers for all tokens in the
full width and uses those of its own rows and columns. On CUDA a mask is no drawn tensor but a
function of one seed and of each element's place (`keep_mask`), which a kernel evaluates where it
needs it: compiled or not, it is the same.

Shapes: T tokens, I in_features; with tensor parallelism over p ranks a slice is I/p wide; with
sequence parallelism T are this rank's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from llama.kernels.compiled import kernel
from llama.kernels.paths import on_cuda, run
from llama.parallel.mesh import TensorParallel
from llama.parallel.sequence import WHOLE, Span


def dropout(
    x: torch.Tensor, p: float, tp: TensorParallel, sharded: bool, span: Span = WHOLE
) -> torch.Tensor:
    """Set elements of `x[T, I or I/p]` to 0 with probability `p` and scale the rest by 1 / (1 - p).
    The result has the shape and type of `x`.

    `sharded` says that `x` is this rank's slice of the last dimension, `span` which tokens it is
    of. The ranks that share a micro-batch hold the same seed: each advances its generator by all
    tokens in the full width, whatever its slice, so that together they drop what one process would,
    and go on from equal states. Only the default generators serve: activation checkpointing
    restores no others before it computes a block again."""
    if p == 0.0:
        return x
    tokens, width = x.shape
    shards, rank = (tp.size, tp.rank) if sharded else (1, 0)
    start = span.start, rank * width
    if on_cuda(x):
        seed = _once(lambda: draw_seed(x.device))
        return _Dropped.apply(x, seed, p, start)  # type: ignore[return-value]
    whole, full = span.whole or tokens, width * shards
    own = slice(span.start, span.start + tokens), slice(rank * width, (rank + 1) * width)

    def draw() -> torch.Tensor:
        # Uniform numbers are drawn several times faster on CPU than Bernoulli ones.
        keep = torch.rand((whole, full), device=x.device)[own] >= p
        return keep.to(x.dtype) * (1.0 / (1.0 - p))

    return x * _once(draw)


_drawn: ContextVar[list[torch.Tensor] | None] = ContextVar("drawn", default=None)


@contextmanager
def one_mask() -> Iterator[None]:
    """Within, `dropout` draws one mask for all that call it: layers that read one input see it
    under the same, as in the merged layers of LoRA's authors (`MergedLinear` in
    github.com/microsoft/LoRA, loralib/layers.py)."""
    before = _drawn.set([])
    try:
        yield
    finally:
        _drawn.reset(before)


def _once(draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    drawn = _drawn.get()
    if drawn is None:
        return draw()
    if not drawn:
        drawn.append(draw())
    return drawn[0]


class Seeds:
    """Room on a device for all that `draw_seed` gives in one pass, for a pass that is recorded once
    and then repeated with other numbers in it."""

    def __init__(self, number: int, device: torch.device) -> None:
        # 16 bytes each: kernels are compiled for addresses of such a multiple.
        self._values = torch.zeros(number, 2, dtype=torch.int64, device=device)
        self._taken = 0

    def take(self) -> torch.Tensor:
        """The next one's place, int64 `[2]`, of the mask from its first row on."""
        self._taken += 1
        return self._values[self._taken - 1]

    def draw(self) -> None:
        """Put in what `draw_seed` would have drawn."""
        cuda = self._values.is_cuda
        drawn = torch.zeros(self._taken, 2, dtype=torch.int64, pin_memory=cuda)
        drawn[:, 0] = torch.randint(2**62, (self._taken,))
        self._values[: self._taken].copy_(drawn, non_blocking=True)


_seeds: ContextVar[Seeds | None] = ContextVar("seeds", default=None)


@contextmanager
def seeds_from(seeds: Seeds) -> Iterator[None]:
    """Within, `draw_seed` draws nothing and gives the places of `seeds`, one after the other."""
    before = _seeds.set(seeds)
    try:
        yield
    finally:
        _seeds.reset(before)


def draw_seed(device: torch.device) -> torch.Tensor:
    """A seed for `keep_mask`, int64 `[2]` on `device`: the number, and 0 for its first place. The
    CPU's default generator gives it: to read a number back from a GPU's would mean waiting for the
    GPU. Activation checkpointing restores that generator before it computes a block again."""
    if (seeds := _seeds.get()) is not None:
        return seeds.take()
    number = run(torch.Tensor.item, torch.randint(2**62, ()))
    seed = torch.full((2,), number, dtype=torch.int64, device=device)
    seed[1:].zero_()
    return seed


def further(seed: torch.Tensor, row: int = 0, column: int = 0) -> torch.Tensor:
    """The seed of the same mask without its first `row` rows and `column` columns: a tile of the
    tokens, or a rank's share of a width, is dropped by it as it would be as a part of the whole."""
    moved = seed.clone()
    moved[1:].add_((column << 32) + row)
    return moved


def keep_mask(
    seed: torch.Tensor, shape: torch.Size, p: float, start: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Which elements stay, boolean `[T, I]` for `shape = [T, I]`: so many rows and columns of a
    mask, from `start` on. `seed`, int64 `[2]`, is a number and by how many rows (in its lower half)
    and columns more the first place here lies further on. So no mask is stored between the passes,
    and a rank or a tile computes its own part of the whole.

    A row and a column have a key each, an odd number that the seed and its place are hashed to, and
    an element's fate is the product of the two keys compared with `p`: multiplicative hashing
    (Dietzfelbinger et al., "A Reliable Randomized Algorithm for the Closest-Pair Problem", 1997,
    section 3), of which an element costs one multiplication. All in 32-bit integers that wrap
    around."""
    device = seed.device
    rows = torch.arange(shape[0], dtype=torch.int32, device=device)
    columns = torch.arange(shape[1], dtype=torch.int32, device=device)
    number, place = seed[:1], seed[1:]
    low, high = number.to(torch.int32), (number >> 32).to(torch.int32)
    row_keys = _keys(rows + (place.to(torch.int32) + start[0]), low, high)
    column_keys = _keys(columns + ((place >> 32).to(torch.int32) + start[1]), high, low)
    return row_keys.unsqueeze(1) * column_keys >= int(p * 2**32) - 2**31


def _keys(places: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A hash of each place, made odd. It is Chris Wellons' `lowbias32` ("Prospecting for Hash
    Functions", 2018): shifts are masked because they are to fill with zeros, and two of the
    constants are written as the negative numbers that have their bits. The seed is mixed in ahead
    of the first multiplication, and must be: a product of places and constants alone inductor takes
    for index arithmetic, and simplifies it as if integers were unbounded."""
    n = (places ^ low) * -1640531527 + high
    n = (n ^ ((n >> 16) & 0xFFFF)) * 0x7FEB352D
    n = (n ^ ((n >> 15) & 0x1FFFF)) * -2073254261
    return (n ^ ((n >> 16) & 0xFFFF)) | 1


def dropped(
    x: torch.Tensor, seed: torch.Tensor, p: float, start: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """`x[T, I]` without what the seed's mask drops, the rest scaled by 1 / (1 - p); to be part of a
    `kernel`. `start`: the row and the column of the mask at which `x` begins."""
    keep = keep_mask(seed, x.shape, p, start)
    return torch.where(keep, x * (1.0 / (1.0 - p)), 0.0)


_dropped = kernel(dropped)


class _Dropped(torch.autograd.Function):
    """The gradient is dropped by the same mask, computed again from the seed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seed: torch.Tensor, p: float, start: Any) -> Any:
        ctx.mask = seed, p, start
        return _dropped(x, *ctx.mask)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _dropped(grad_outputs[0], *ctx.mask), None, None, None
