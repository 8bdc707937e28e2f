"""Attention of a rank that has a share of each micro-batch's tokens.

Shapes: T tokens of the micro-batch, t of this rank's share, N ranks, H query heads, K kv heads, E
head_dim; h and k of them are a rank's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llama.model.attention import document_attention
from llama.model.documents import Documents
from llama.parallel.sequence import SequenceParallel

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q, k and v, or their gradients."""


@dataclass(frozen=True)
class Traded:
    """`document_attention` of all tokens for this rank's share of the heads, and of it what belongs
    to this rank's tokens. N divides H, and it divides K or K divides it: then each kv head goes to
    the ranks of its query heads.

    Called it is differentiable; the other functions are its parts and theirs backward."""

    sequence: SequenceParallel

    def __call__(
        self,
        q_tHE: torch.Tensor,
        k_tKE: torch.Tensor,
        v_tKE: torch.Tensor,
        documents: Documents,
    ) -> torch.Tensor:
        """`[t, H, E]`. `documents` are those of the whole micro-batch."""
        out_ThE = document_attention(*self.to_heads((q_tHE, k_tKE, v_tKE), documents), documents)
        return self.to_tokens(out_ThE.flatten(1), documents).unflatten(1, q_tHE.shape[1:])

    def to_heads(self, qkv: Sequence[torch.Tensor], documents: Documents) -> Three:
        """From q, k and v of this rank's tokens, `[t, H or K, E]`, to those of its heads,
        `[T, h or k, E]`."""
        times, ranks = self._times(qkv[1].shape[1]), self.sequence.size
        each = [qkv[0], *(x.repeat_interleave(times, dim=1) if times > 1 else x for x in qkv[1:])]
        # One message: of every rank's heads q, k and v side by side, laid out as they are sent.
        by_rank = [x.unflatten(1, (ranks, -1)).flatten(2).transpose(0, 1) for x in each]
        sent = torch.cat(by_rank, dim=2).transpose(0, 1)
        found = self.sequence.all_tokens(sent, documents.boundaries[-1])
        heads = [x.shape[1] // ranks for x in each]
        return found.unflatten(1, (-1, qkv[0].shape[2])).split(heads, dim=1)  # type: ignore[return-value]

    def to_tokens(self, out: torch.Tensor, documents: Documents) -> torch.Tensor:
        """From all tokens of this rank's heads, `[T, h E]`, to its tokens of all, `[t, H E]`."""
        return self.sequence.own_tokens(out, documents.boundaries[-1]).flatten(1)

    def gradient_to_heads(self, grad: torch.Tensor, documents: Documents) -> torch.Tensor:
        """Of `to_tokens`: `[t, H E]` to `[T, h E]`."""
        by_rank = grad.unflatten(1, (self.sequence.size, -1))
        return self.sequence.all_tokens(by_rank, documents.boundaries[-1])

    def gradients_to_tokens(
        self, grads: Sequence[torch.Tensor], kv_heads: int, documents: Documents
    ) -> Three:
        """Of `to_heads`: `[T, h or k, E]` to `[t, H or K, E]`, K being `kv_heads`."""
        times, width = self._times(kv_heads), grads[0].shape[2]
        sent = torch.cat([grad.flatten(1) for grad in grads], dim=1)
        found = self.sequence.own_tokens(sent, documents.boundaries[-1]).unflatten(2, (-1, width))
        q, *kv = (x.flatten(1, 2) for x in found.split([x.shape[1] for x in grads], dim=2))
        k, v = (x.unflatten(1, (-1, times)).sum(2) if times > 1 else x for x in kv)
        return q, k, v

    def _times(self, kv_heads: int) -> int:
        """How many ranks have each kv head."""
        return max(1, self.sequence.size // kv_heads)
