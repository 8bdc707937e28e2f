"""Low-rank adaptation.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1:
`y = W x + scale B A dropout(x)`, with B zero at the start: training begins at the base. The scale
is alpha / r, or alpha / sqrt(r) as in Kalajdzievski, "A Rank Stabilization Scaling Factor for
Fine-Tuning with LoRA", 2023, under which an update's size does not shrink as the rank grows.

Shapes: T tokens, R rank, I in_features, O out_features; `/p` marks a sharded one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from llama.adapters.adapter import Adapter, Cut, Shapes, Weight
from llama.parallel.dropout import dropout
from llama.parallel.layers import (
    ColumnParallelLinear,
    ParallelLinear,
    copy_to_shards,
    reduce_from_shards,
    sharded_parameter,
)
from llama.parallel.side_path import LowRank
from llama.settings import LoRAOptions

SCALES = {
    "alpha/r": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(r)": lambda alpha, rank: alpha / math.sqrt(rank),
}
"""What `--lora.scale` takes, of alpha and the rank."""


class LoRAAdapter(Adapter):
    """A low-rank side path. What is communicated between shards is only ever of width R:

    - on a column-parallel layer, A[R, I] is replicated and B[O/p, R] is sharded. The gradient of
      `A x` is summed over the shards, so that A's own gradient is whole and equal on each;
    - on a row-parallel layer, A[R, I/p] is sharded and B[O, R] is replicated. `A x` is summed over
      the shards, so that B sees the whole of it.
    """

    PEFT_TENSORS: ClassVar[Mapping[str, str]] = {"a": "lora_A.weight", "b": "lora_B.weight"}
    PEFT_REFUSED: ClassVar[tuple[str, ...]] = (
        *("use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias"),
        *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    )

    RAISED: ClassVar[tuple[str, ...]] = ("b",)
    CUT: ClassVar[Mapping[str, Cut]] = {"a": Cut(column=None, row=1), "b": Cut(column=0, row=None)}

    def __init__(self, base: ParallelLinear, options: LoRAOptions) -> None:
        super().__init__(base, options)
        self.scale = SCALES[options.scale](options.alpha, options.rank)
        self.dropout = options.dropout
        self.column = isinstance(base, ColumnParallelLinear)
        rows, columns = base.shard_shape
        self.a = sharded_parameter(options.rank, columns, dim=self.CUT["a"].of(self.column))
        self.b = sharded_parameter(rows, options.rank, dim=self.CUT["b"].of(self.column))
        self.in_features = base.in_features

    @staticmethod
    def shapes(rows: int, columns: int, rank: int) -> Shapes:
        return {"a": (rank, columns), "b": (rows, rank)}

    def reset(self, generator: torch.Generator, weight: Weight) -> None:
        """A uniform in +-1/sqrt(I), as PEFT draws it; B zero."""
        rank, columns = self.a.shape
        bound = 1.0 / math.sqrt(self.in_features)
        full = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        start = 0 if self.column else self.tp.rank * columns
        with torch.no_grad():
            self.a.copy_(full[:, start : start + columns])
            self.b.zero_()

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`A[R, I]` and `B[O, R]` as they are applied, this rank's shares."""
        return self.a, self.b

    def forward(self, x: torch.Tensor, base_output: torch.Tensor) -> torch.Tensor:
        """`base_output` plus the adapter's path from `x`: `[T, O]` or `[T, O/p]`."""
        if self.training:
            x = dropout(x, self.dropout, self.tp, not self.column, self.span)
        a, b = self.factors()
        hidden_TR = x @ a.to(x.dtype).t()
        exchange = copy_to_shards if self.column else reduce_from_shards
        hidden_TR = exchange(hidden_TR, self.tp)
        # In place: nothing else has seen the base layer's output, nor reads it in the backward.
        return base_output.addmm_(hidden_TR, b.to(x.dtype).t(), alpha=self.scale)

    @torch.no_grad()
    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """`scale B A`. Of a sharded layer either factor is whole on each rank, so that the
        product is this rank's share."""
        a, b = self.factors()
        return (b.float() @ a.float()).mul_(self.scale)

    def low_rank(self) -> LowRank | None:
        return LowRank(*self.factors(), self.scale, self.dropout, self.span.start)

    @classmethod
    def to_peft(cls, options: LoRAOptions) -> dict[str, Any]:
        return {"peft_type": "LORA", "use_rslora": options.scale == "alpha/sqrt(r)"}

    @classmethod
    def from_peft(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        return {"scale": "alpha/sqrt(r)" if document.get("use_rslora") else "alpha/r"}
