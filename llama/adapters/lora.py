"""The arithmetic of one LoRA adapter, whole or sharded with the layer that it sits on.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1:
`y = W x + (alpha / r) B A dropout(x)`, with B zero at the start: training begins at the base.

Shapes: T tokens, R rank, I in_features, O out_features; `/p` marks a sharded one.
"""

from __future__ import annotations

import math

import torch

from llama.parallel.dropout import dropout
from llama.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_shards,
    reduce_from_shards,
    sharded_parameter,
)
from llama.parallel.side_path import LowRank, SidePath


class LoRAAdapter(SidePath):
    """A low-rank side path. What is communicated between shards is only ever of width R:

    - on a column-parallel layer, A[R, I] is replicated and B[O/p, R] is sharded. The gradient of
      `A x` is summed over the shards, so that A's own gradient is whole and equal on each;
    - on a row-parallel layer, A[R, I/p] is sharded and B[O, R] is replicated. `A x` is summed over
      the shards, so that B sees the whole of it.
    """

    def __init__(
        self, base: ColumnParallelLinear | RowParallelLinear, rank: int, alpha: float, p: float
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.dropout = p
        self.tp = base.tp
        self.column = isinstance(base, ColumnParallelLinear)
        # Not the weight's own shape: under ZeRO-3 it lies elsewhere.
        rows, columns = base.shard_shape
        self.a = sharded_parameter(rank, columns, dim=None if self.column else 1)
        self.b = sharded_parameter(rows, rank, dim=0 if self.column else None)
        self.in_features = base.in_features

    def reset(self, generator: torch.Generator) -> None:
        """A uniform in +-1/sqrt(I), as PEFT draws it; B zero. The draw is of A's full width, and a
        shard takes its slice, so that any degree starts from the same adapter."""
        rank, columns = self.a.shape
        bound = 1.0 / math.sqrt(self.in_features)
        full = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        start = 0 if self.column else self.tp.rank * columns
        with torch.no_grad():
            self.a.copy_(full[:, start : start + columns])
            self.b.zero_()

    def forward(self, x: torch.Tensor, base_output: torch.Tensor) -> torch.Tensor:
        """`base_output` plus the adapter's path from `x`: `[T, O]` or `[T, O/p]`."""
        if self.training:
            x = dropout(x, self.dropout, self.tp, sharded=not self.column)
        hidden_TR = x @ self.a.to(x.dtype).t()
        exchange = copy_to_shards if self.column else reduce_from_shards
        hidden_TR = exchange(hidden_TR, self.tp)
        # In place: nothing else has seen the base layer's output, nor reads it in the backward.
        return base_output.addmm_(hidden_TR, self.b.to(x.dtype).t(), alpha=self.scale)

    def low_rank(self) -> LowRank:
        """The factors as they are."""
        return LowRank(self.a, self.b, self.scale, self.dropout)
