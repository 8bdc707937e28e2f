"""Keys and values of the tokens already seen, for generation.

Shapes: N sequences, M of them in one forward pass, T new tokens of those end to end, C tokens of
room for each, L held by the longest, K this rank's kv heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    mask_M11L: torch.Tensor | None
    """What is added to the scores of one token of each sequence: minus infinity beyond the
    sequence's own end. None where all are equally long, or have other numbers of new tokens."""

    @property
    def begins(self) -> bool:
        """Whether nothing was held before of any of them."""
        return self.documents.lengths == self.ends

    @property
    def one_each(self) -> bool:
        """Whether each has one new token."""
        return self.documents.longest == 1


class KVCache:
    """Sequences of different lengths, numbered from 0. A forward pass adds tokens to the last M:

        cache.open(3)                                     three more, with nothing in them
        added = cache.begin([5, 2, 7])                    14 tokens end to end, 5 of the first
        model(tokens, added.positions_T, added.documents, cache=cache)

    `begin` makes room, each layer calls `extend`, and the model `advance` when it is done. Room
    grows as it is needed, by doubling."""

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

    def open(self, count: int) -> None:
        """`count` more sequences, after those that are there."""
        first = len(self.lengths)
        self.lengths += [0] * count
        self._make_room(len(self.lengths), 1)
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
        self.lengths[sequence] = min(length, self.lengths[sequence])

    def begin(self, counts: Sequence[int]) -> Added:
        """Make room for `counts` tokens, at least one each, of the last `len(counts)` sequences."""
        first = len(self.lengths) - len(counts)
        held = self.lengths[first:]
        ends = [length + count for length, count in zip(held, counts, strict=True)]
        self._make_room(len(self.lengths), max(ends))
        positions = [at for start, end in zip(held, ends, strict=True) for at in range(start, end)]
        room = self._keys[0].shape[1]
        sequences = [first + i for i, count in enumerate(counts) for _ in range(count)]
        rows = [sequence * room + at for sequence, at in zip(sequences, positions, strict=True)]
        mask = None
        if len(rows) == len(counts) and len(set(ends)) > 1:
            mask = self._mask(ends)
        self.added = Added(
            *(first, Documents((0, *accumulate(counts))), ends),
            torch.tensor(positions, dtype=torch.int64, device=self._device),
            torch.tensor(rows, dtype=torch.int64, device=self._device),
            mask,
        )
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

    def _mask(self, ends: list[int]) -> torch.Tensor:
        at_L = torch.arange(max(ends), device=self._device)
        beyond_ML = at_L >= torch.tensor(ends, device=self._device).unsqueeze(1)
        mask_ML = torch.zeros(beyond_ML.shape, dtype=self._keys[0].dtype, device=self._device)
        return mask_ML.masked_fill_(beyond_ML, -torch.inf)[:, None, None]

    def _make_room(self, sequences: int, length: int) -> None:
        """One layer after another, so that no more than one is held twice."""
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
