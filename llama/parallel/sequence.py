"""The tokens of a micro-batch cut over ranks, which trade heads for tokens around attention (Jacobs
et al., "DeepSpeed Ulysses", 2023, section 3).

All but attention is of one token alone, and each rank does it for its own share of the tokens.
Attention is of one head alone, and each rank does it for its own share of the heads:

    tokens a b c d e     rank 0  a b of all heads         rank 0  a b c d e of heads 0, 1
    heads 0 1 2 3        rank 1  c d e of all heads  <->  rank 1  a b c d e of heads 2, 3

Shares are contiguous and differ by a token at most, so that no row is cut or filled up. DeepSpeed's
own exchange (`deepspeed.sequence.layer`) takes equal shares alone, which packed rows have not.

Shapes: T tokens of the micro-batch, t of this rank's share, N ranks, w elements of a rank's heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class SequenceParallel:
    """This rank's place among those that share each micro-batch's tokens. `group` is None where
    that is this rank alone."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def counts(self, tokens: int) -> list[int]:
        """Of so many tokens the number of each rank; some have none of fewer tokens than ranks."""
        ends = [tokens * rank // self.size for rank in range(self.size + 1)]
        return [end - start for start, end in pairwise(ends)]

    def own(self, tokens: int) -> slice:
        """Which of so many tokens are this rank's."""
        return slice(tokens * self.rank // self.size, tokens * (self.rank + 1) // self.size)

    def all_tokens(self, x: torch.Tensor, tokens: int) -> torch.Tensor:
        """From its own tokens' elements for every rank, `[t, N, w]`, to all tokens' for this one,
        `[T, w]`. Its gradient goes back the same way. Every rank of the group must call it."""
        return _Trade.apply(x, self, tokens, True)  # type: ignore[return-value]

    def own_tokens(self, x: torch.Tensor, tokens: int) -> torch.Tensor:
        """The inverse of `all_tokens`: `[T, w]` to `[t, N, w]`."""
        return _Trade.apply(x, self, tokens, False)  # type: ignore[return-value]

    def trade(self, x: torch.Tensor, tokens: int, to_all: bool) -> torch.Tensor:
        """What the two above give, without a gradient."""
        counts = self.counts(tokens)
        own = [counts[self.rank]] * self.size
        if to_all:
            return self._sent(x.transpose(0, 1).flatten(0, 1), own, counts)
        return self._sent(x, counts, own).unflatten(0, (self.size, -1)).transpose(0, 1)

    def _sent(self, x: torch.Tensor, given: list[int], taken: list[int]) -> torch.Tensor:
        """Rows of `x` to each rank in turn, and from each: so many of them."""
        found = x.new_empty(sum(taken), x.shape[1])
        dist.all_to_all_single(found, x.contiguous(), taken, given, group=self.group)
        return found


ALONE = SequenceParallel()
"""No sequence parallelism: all tokens of a micro-batch are on this rank."""


@dataclass
class Span:
    """Which tokens of the micro-batch in work a rank has. What is drawn for all of them, as dropout
    is, is drawn alike on every rank, which uses its own tokens' part; so it must be known where a
    layer sees its share alone. It stays the same until the backward pass is through."""

    start: int = 0
    whole: int | None = None
    """Tokens of the micro-batch; None: as many as there are here."""


WHOLE = Span()
"""All of them; nobody changes it."""


class _Trade(torch.autograd.Function):
    """A permutation of elements over ranks, of which the gradient's is the inverse."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, sequence: SequenceParallel, tokens: int, to_all: bool
    ) -> torch.Tensor:
        ctx.trade = sequence, tokens, to_all
        return sequence.trade(x, tokens, to_all)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        sequence, tokens, to_all = ctx.trade
        return sequence.trade(grad_outputs[0], tokens, not to_all), None, None, None
