"""Micro-batches in tensors that stay where they are, of sizes that are rounded up, so that one CUDA
graph serves many of them; and what of a model decides which kernels a graph has.

Shapes: T tokens, N supervised positions, both with their rounding up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from llama.model.attention import document_attention
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.transformer import Supervision, Transformer
from llama.parallel.side_path import SidePath

T = TypeVar("T")

TILE = 128
"""Sizes are multiples of it: rows of the products' and the attention's tiles."""
PARTS = 8
"""A size above `PARTS` tiles is rounded up by at most an eighth; the supervised positions to a
multiple of an eighth of the tokens, so that there are few pairs of the two."""
FEWEST_DOCUMENTS, SHORTEST = 16, 256
"""The least room for documents, and the least bound of their length. Both grow fourfold: to have
many costs little, and attention is launched for all of them as if each were of the bound."""
IGNORED = -1
"""A label that counts for nothing."""


@dataclass(frozen=True)
class Mode:
    """What of a model, beside sizes, decides which kernels a pass launches, and with which numbers
    that the host gives them."""

    trains: bool
    """Whether there is a backward pass; else nothing is dropped, and nothing kept."""
    kept: tuple[Kept, ...]
    """For the backward pass, of each block."""
    scales: tuple[float, ...]
    """Of its adapters: those that are switched off have 0."""


def mode_of(model: Transformer, paths: Sequence[SidePath]) -> Mode:
    """That of a pass which `model`, whose adapters are `paths`, would be asked for now."""
    trains = model.training and torch.is_grad_enabled()
    return Mode(trains, tuple(model.kept) if trains else (), tuple(path.scale for path in paths))


def side_paths(model: Transformer) -> list[SidePath]:
    """All adapters of `model`: to be asked for once, as it visits every module."""
    return [module for module in model.modules() if isinstance(module, SidePath)]


def shares_tokens(model: Transformer) -> bool:
    """Whether ranks have some tokens of a micro-batch each, and exchange within a pass."""
    return any(block.attention.attend is not document_attention for block in model.layers)  # type: ignore[union-attr]


def is_watched(model: Transformer) -> bool:
    """Whether something waits for what blocks give, which a graph calls none of."""
    return any(block._forward_hooks for block in model.layers)


@dataclass(frozen=True)
class Shape:
    """What two micro-batches must have in common for one graph to serve both."""

    tokens: int
    supervised: int
    documents: int
    """Room for so many, those that fill up among them; of a plain batch of rows of one length
    that is a multiple of the tiles, how many there are."""
    longest: int
    """None is longer; of such rows the length of each."""
    uniform: bool
    """Whether it is such a batch."""
    mode: Mode

    def is_of_kind(self, other: Shape) -> bool:
        """Whether passes of both launch the same kernels, in other sizes. Attention to rows of one
        length is planned for that length."""
        same = (self.uniform, self.mode) == (other.uniform, other.mode)
        return same and (not self.uniform or self.longest == other.longest)

    def serves(self, other: Shape) -> bool:
        """Whether a graph of this shape takes micro-batches of `other` as well, for little more
        than one of their own would take."""
        if self == other:
            return True
        same = (self.tokens, self.uniform, self.mode) == (other.tokens, False, other.mode)
        room = self.supervised - other.supervised
        return (
            same
            and 0 <= room <= -(-self.tokens // PARTS)
            and other.documents <= self.documents <= 4 * other.documents
            and other.longest <= self.longest <= 4 * other.longest
        )

    def with_room_of(self, others: Iterable[Shape]) -> Shape:
        """This shape with as much room for documents and for their lengths as any of `others` has,
        as far as it then still serves its own micro-batches: what one kind of rows varies in first.
        Attention to documents that are not there costs less than another recording."""
        if self.uniform:
            return self
        documents, longest = self.documents, self.longest
        for other in others:
            if other.documents <= 4 * self.documents:
                documents = max(documents, other.documents)
            if other.longest <= 4 * self.longest:
                longest = max(longest, other.longest)
        return replace(self, documents=documents, longest=min(longest, self.tokens))


def rounded(size: int) -> int:
    """`size` or the next larger one that is captured."""
    step = TILE
    while size > 2 * PARTS * step:
        step *= 2
    return _up(size, step)


def shape_of(documents: Documents, supervised: int, mode: Mode, fewest: int = 0) -> Shape:
    """That of a micro-batch; filled up to `fewest` tokens where it is to be longer."""
    tokens, longest, number = documents.boundaries[-1], documents.longest, len(documents)
    uniform = documents.uniform and longest % (2 * TILE) == 0
    if not uniform:
        whole = rounded(max(tokens, fewest))
        longest = min(whole, _fourfold(SHORTEST, longest))
        needed = number + -(-(whole - tokens) // longest)
        tokens, number = whole, _fourfold(FEWEST_DOCUMENTS, needed)
    supervised = _up(supervised, -(-tokens // PARTS))
    return Shape(tokens, supervised, number, longest, uniform, mode)


def shapes_of(documents: Documents, supervised: int, mode: Mode) -> Iterator[Shape]:
    """That of a micro-batch, and those that it has when it is filled up by as much as another
    eighth of its tokens: what serves them serves it too."""
    own = found = shape_of(documents, supervised, mode)
    while found.tokens <= own.tokens + own.tokens // PARTS:
        yield found
        if own.uniform:
            return
        found = shape_of(documents, supervised, mode, found.tokens + 1)


def _fourfold(size: int, least: int) -> int:
    """`size`, or the first of its products with 4, 16, ... that is `least` or more."""
    while size < least:
        size *= 4
    return size


def _up(size: int, step: int) -> int:
    """The next multiple of `step`, and at least one of it."""
    return -(-max(size, 1) // step) * step


class _Placed(Documents):
    """Documents whose bounds are read from a tensor that is written anew for each pass."""

    def __init__(self, shape: Shape, ends: torch.Tensor) -> None:
        super().__init__((0, 1, shape.tokens))  # of unlike lengths, whatever they are
        self.longest = shape.longest
        self._ends = ends


class Inputs:
    """A micro-batch in tensors that stay where they are."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.tokens_T = torch.zeros(shape.tokens, dtype=torch.int64, device=device)
        self.positions_T = torch.zeros_like(self.tokens_T)
        self.index_N = torch.zeros(shape.supervised, dtype=torch.int64, device=device)
        self.labels_N = torch.full_like(self.index_N, IGNORED)
        self.ends = torch.zeros(shape.documents + 1, dtype=torch.int32, device=device)
        if shape.uniform:
            self.documents = Documents(range(0, shape.tokens + 1, shape.longest))
        else:
            self.documents = _Placed(shape, self.ends)

    def fill(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision,
    ) -> None:
        """Put in another micro-batch of the same `Shape`. What it leaves of the tokens is whatever
        lay there: more documents, each attended to by itself and supervised nowhere."""
        tokens, supervised = len(tokens_T), len(labels.index_N)
        self.tokens_T[:tokens].copy_(tokens_T)
        self.positions_T[:tokens].copy_(positions_T)
        self.index_N[:supervised].copy_(labels.index_N)
        self.labels_N[:supervised].copy_(labels.labels_N)
        self.labels_N[supervised:].fill_(IGNORED)
        if not self.shape.uniform:
            end = self.shape.tokens
            bounds = [*documents.boundaries, *range(tokens, end, self.shape.longest)[1:]]
            bounds += [end] * (len(self.ends) - len(bounds))
            self.ends.copy_(torch.tensor(bounds, dtype=torch.int32))

    def arguments(self) -> tuple[Any, ...]:
        """Those of a `RunModel`, after the model."""
        labels = Supervision(self.index_N, self.labels_N)
        return self.tokens_T, self.positions_T, self.documents, labels, None, False


def serving(recorded: Mapping[Shape, T], shapes: Iterable[Shape]) -> T | None:
    """What of `recorded` takes a micro-batch of any of `shapes`, of an earlier one rather: its own,
    or else another's."""
    for shape in shapes:
        others = (found for of, found in recorded.items() if of.serves(shape))
        if (known := recorded.get(shape) or next(others, None)) is not None:
            return known
    return None
