"""Keys and values of the tokens already seen, for generation.

Shapes: N sequences, M of them in one forward pass, T new tokens of those end to end, C tokens of
room for each, L held by the longest, K this rank's kv heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from llama.model.config import ModelConfig
from llama.model.documents import Documents

_ROOM = 64
"""The room of a sequence is a multiple of this many tokens."""


@dataclass(frozen=True)
class Added:
    """The tokens that one forward pass adds."""

    first: int
    """The sequences are those from this one to the last."""
    documents: Documents
    """The bounds of their new tokens, which lie end to end."""
    ends: list[int]
    """Tokens of each, the new ones with them."""
    positions_T: torch.Tensor
    """Of each token in its own sequence, int64."""
    rows_T: torch.Tensor
    """Where each goes in `[N * C, K, E]`, int64."""
    dtype: torch.dtype
    """Of keys and values."""

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """What is added to the scores of one token of each sequence, `[M, 1, 1, L]`: minus infinity
        beyond the sequence's own end. None where all are equally long, or have other numbers of new
        tokens. Made when it is asked for: a recorded pass has its own."""
        if not self.one_each or len(set(self.ends)) == 1:
            return None
        return beyond(self.positions_T, max(self.ends), self.dtype)

    @property
    def begins(self) -> bool:
        """Whether nothing was held before of any of them."""
        return self.documents.lengths == self.ends

    @property
    def one_each(self) -> bool:
        """Whether each has one new token."""
        return self.documents.longest == 1


def beyond(last_M: torch.Tensor, held: int, dtype: torch.dtype) -> torch.Tensor:
    """`[M, 1, 1, held]` of `dtype`: 0 up to the position `last_M` of each, then minus infinity."""
    beyond_ML = torch.arange(held, device=last_M.device) > last_M.unsqueeze(1)
    mask_ML = torch.zeros(beyond_ML.shape, dtype=dtype, device=last_M.device)
    return mask_ML.masked_fill_(beyond_ML, -torch.inf)[:, None, None]


class KVCache:
    """Sequences of different lengths, numbered from 0. A forward pass adds tokens to the last M:

        cache.open(3)                                     three more, with nothing in them
        added = cache.begin([5, 2, 7])                    14 tokens end to end, 5 of the first
        model(tokens, added.positions_T, added.documents, cache=cache)

    `begin` makes room, each layer calls `extend`, and the model `advance` when it is done. Room
    grows as it is needed, by doubling; who knows what is to come makes it at once (`reserve`)."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ) -> None:
        self.lengths: list[int] = []
        """Tokens held of each sequence, the same in every layer."""
        self.added: Added
        """What the forward pass that is going on adds."""
        self._device = device
        empty = torch.zeros(
            (0, 0, kv_heads or config.n_kv_heads, config.head_dim), dtype=dtype, device=device
        )
        self._keys = [empty] * config.n_layers
        self._values = [empty] * config.n_layers

    @property
    def memory(self) -> torch.Tensor:
        """The keys of the first layer, `[N, C, K, E]`, of all the sequences that there is room for:
        another tensor each time that room was made."""
        return self._keys[0]

    def open(self, count: int) -> None:
        """`count` more sequences, after those that are there."""
        first = len(self.lengths)
        self.lengths += [0] * count
        self.reserve(len(self.lengths), 1)
        for layer in (*self._keys, *self._values):
            # What a sequence that left was given may be NaN, which no mask keeps from its row.
            layer[first : first + count].zero_()

    def close(self, sequence: int) -> None:
        """Forget `sequence`; the last one takes its number."""
        last = len(self.lengths) - 1
        if sequence != last:
            for layer in (*self._keys, *self._values):
                layer[sequence] = layer[last]
            self.lengths[sequence] = self.lengths[last]
        self.lengths.pop()

    def keep(self, sequence: int, length: int) -> None:
        """Forget what `sequence` holds beyond its first `length` tokens."""
        held = self.lengths[sequence]
        if length < held:
            for layer in (*self._keys, *self._values):
                layer[sequence, length:held].zero_()  # NaN, as in `open`
            self.lengths[sequence] = length

    def begin(self, counts: Sequence[int]) -> Added:
        """Make room for `counts` tokens, at least one each, of the last `len(counts)` sequences."""
        first = len(self.lengths) - len(counts)
        held = self.lengths[first:]
        ends = [length + count for length, count in zip(held, counts, strict=True)]
        self.reserve(len(self.lengths), max(ends))
        positions = [at for start, end in zip(held, ends, strict=True) for at in range(start, end)]
        room = self._keys[0].shape[1]
        sequences = [first + i for i, count in enumerate(counts) for _ in range(count)]
        rows = [sequence * room + at for sequence, at in zip(sequences, positions, strict=True)]
        both = torch.tensor([positions, rows], dtype=torch.int64, device=self._device)
        documents = Documents((0, *accumulate(counts)))
        self.added = Added(first, documents, ends, both[0], both[1], self.memory.dtype)
        return self.added

    def extend(
        self, layer: int, k_TKE: torch.Tensor, v_TKE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of `layer`; all keys and values of the sequences of this forward
        pass, `[M, L, K, E]`. Those of a shorter one end in rows that are not its own."""
        added = self.added
        found = []
        for held, new in ((self._keys[layer], k_TKE), (self._values[layer], v_TKE)):
            held.flatten(0, 1).index_copy_(0, added.rows_T, new)
            found.append(held[added.first : len(self.lengths), : max(added.ends)])
        return found[0], found[1]

    def advance(self) -> None:
        """The forward pass is done: what it added is held."""
        self.lengths[self.added.first :] = self.added.ends

    def reserve(self, sequences: int, length: int) -> None:
        """Make room for so many sequences of `length` tokens: one layer after another, so that no
        more than one is held twice."""
        had, room = self._keys[0].shape[:2]
        if sequences <= had and length <= room:
            return
        if length > room:
            room = -(-max(length, 2 * room) // _ROOM) * _ROOM
        for layers in (self._keys, self._values):
            for layer, old in enumerate(layers):
                new = old.new_zeros(max(sequences, had), room, *old.shape[2:])
                new[:had, : old.shape[1]] = old
                layers[layer] = new


class SteppedCache(KVCache):
    """The first M rows of a cache's memory in passes of one new token each. How many tokens each
    holds is read from a tensor, and attention goes over all the room, of which a mask leaves each
    sequence its own: whatever is held, such passes are the same operations on the same memory. Rows
    may be of no sequence: what they are given, `open` clears away.

    It is for the forward pass alone; sequences come and go in the cache itself."""

    def __init__(self, cache: KVCache, held_M: torch.Tensor) -> None:
        """`held_M`: int64, below the cache's room."""
        self._keys, self._values = cache._keys, cache._values
        self._held_M = held_M
        self.lengths = [cache.memory.shape[1]] * len(held_M)

    def step(self) -> Added:
        """Begin a pass, by what `held_M` holds now."""
        held_M, room = self._held_M, self.memory.shape[1]
        count = len(held_M)
        rows_M = torch.arange(count, device=held_M.device) * room + held_M
        documents = Documents(range(count + 1))
        self.added = _Stepped(0, documents, self.lengths, held_M, rows_M, self.memory.dtype)
        return self.added

    def advance(self) -> None:
        """The cache itself is told."""


class _Stepped(Added):
    """Of which the ends are those of the room."""

    @cached_property
    def mask(self) -> torch.Tensor | None:
        return beyond(self.positions_T, self.ends[0], self.dtype)
