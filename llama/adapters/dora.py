"""Weight-decomposed low-rank adaptation.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, equation 5: direction and length of
the weight of each output train apart,

    y = m (W + scale B A) / |W + scale B A| x

with |.| the length of each row, over the inputs, and m begun as |W|, so that training begins at the
base. As in section 4.3 no gradient goes through the length: it is a number that each step takes
anew. Dropout is of A's input alone, as in LoRA, so that W x is taken once; PEFT takes it a second
time, of the dropped input. Without dropout the two are the same.

Shapes: T tokens, R rank, I in_features, O out_features; `/p` marks a sharded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from llama.adapters.adapter import Cut, Shapes, Weight
from llama.adapters.lora import LoRAAdapter
from llama.parallel.layers import ParallelLinear, sharded_parameter
from llama.settings import LoRAOptions


class DoRAAdapter(LoRAAdapter):
    """The factors of LoRA, and m, the length of each row: `[O/p]` on a column-parallel layer, `[O]`
    on a row-parallel one, whose rows are cut, so that squares are summed over the shards."""

    PEFT_TENSORS: ClassVar[Mapping[str, str]] = {
        **LoRAAdapter.PEFT_TENSORS,
        "m": "lora_magnitude_vector",
    }
    PEFT_SWITCH: ClassVar[str | None] = "use_dora"
    CUT: ClassVar[Mapping[str, Cut]] = {**LoRAAdapter.CUT, "m": Cut(column=0, row=None)}
    RAISED: ClassVar[tuple[str, ...]] = ("b", "m")
    FUSED: ClassVar[bool] = False
    READS_WEIGHT: ClassVar[bool] = True

    def __init__(self, base: ParallelLinear, options: LoRAOptions) -> None:
        super().__init__(base, options)
        rows, _ = base.shard_shape
        self.m = sharded_parameter(rows, dim=self.CUT["m"].of(self.column))
        self._base = (base,)
        """In a tuple, or torch would take the layer for a part of its own adapter."""

    @staticmethod
    def shapes(rows: int, columns: int, rank: int) -> Shapes:
        return {**LoRAAdapter.shapes(rows, columns, rank), "m": (rows,)}

    def reset(self, generator: torch.Generator, weight: Weight) -> None:
        super().reset(generator, weight)
        with torch.no_grad():
            self.m.copy_(self._lengths(weight()))

    def forward(self, x: torch.Tensor, base_output: torch.Tensor) -> torch.Tensor:
        if self.scale == 0:
            return base_output
        (base,) = self._base
        lengths = self._lengths(base.kind(base.get_parameter("weight")).dense())
        more = (self.m.float() / lengths - 1).to(x.dtype)  # near 0, where 16 bits are dense
        turned = super().forward(x, base_output)
        without_bias = turned if base.bias is None else turned - base.get_parameter("bias")
        return torch.addcmul(turned, without_bias, more)

    @torch.no_grad()
    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """`m (W + scale B A) / |W + scale B A| - W`."""
        frozen = weight.float()
        turned = frozen + super().delta(weight)
        lengths = self._over_shards(turned.square().sum(dim=1)).sqrt()
        return (self.m.float() / lengths).unsqueeze(1) * turned - frozen

    def low_rank(self) -> None:
        """What it adds depends on W too."""

    @torch.no_grad()
    def _lengths(self, weight: torch.Tensor) -> torch.Tensor:
        """`|W + scale B A|`, float32. No matrix of W's size is made for it: a row's square is
        `|w|^2 + 2 scale b (A w) + scale^2 b (A A^T) b`."""
        a, b = (factor.float() for factor in self.factors())
        across = (weight @ a.t().to(weight.dtype)).float()
        squares = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
        squares += self.scale * (b * (2 * across + self.scale * (b @ (a @ a.t())))).sum(dim=1)
        return self._over_shards(squares).sqrt()

    def _over_shards(self, squares: torch.Tensor) -> torch.Tensor:
        """Sums of a row-parallel layer's shares, in place."""
        if not self.column:
            self.tp.all_reduce_(squares)
        return squares

    @classmethod
    def to_peft(cls, options: LoRAOptions) -> dict[str, Any]:
        return super().to_peft(options) | {"use_dora": True}
