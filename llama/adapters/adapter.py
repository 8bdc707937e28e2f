"""What every kind of adapter is asked.

A kind is one file of this folder with a class of these methods, and one line in `kinds.py`. Shapes:
R rank, I in_features, O out_features; `/p` marks a sharded one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from llama.parallel.layers import ParallelLinear, mark_shard, shard_dim
from llama.parallel.sequence import WHOLE
from llama.parallel.side_path import SidePath
from llama.settings import LoRAOptions

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]
Weight = Callable[[], torch.Tensor]
"""This rank's share of the layer's frozen weight, float32, in memory of the caller's own. Made when
it is called: most kinds never ask."""


@dataclass(frozen=True)
class Cut:
    """Along which dimension a tensor is sharded over tensor-parallel ranks, by how its layer is;
    None: every rank has all of it."""

    column: int | None
    row: int | None

    def of(self, is_column: bool) -> int | None:
        return self.column if is_column else self.row


class Adapter(SidePath):
    """An adapter on one linear layer. Its trained tensors are its parameters, each marked with the
    dimension along which it is sharded."""

    PEFT_TENSORS: ClassVar[Mapping[str, str]]
    """The name of each tensor here to its name in a PEFT file, as `a` to `lora_A.weight`."""

    PEFT_SWITCH: ClassVar[str | None] = None
    """The field of `adapter_config.json` that is true where tensors are of this kind; without one
    the tensors are of the plain kind."""

    CUT: ClassVar[Mapping[str, Cut]]
    """How each tensor that trains is sharded."""

    RAISED: ClassVar[tuple[str, ...]]
    """The tensors that learn at `--lora.b_lr_ratio` times the rate of the others; never the first
    one."""

    FUSED: ClassVar[bool] = True
    """Whether `low_rank` says all of it, so that the fused block covers it."""

    READS_WEIGHT: ClassVar[bool] = False
    """Whether each forward pass reads the layer's weight, and multiplies it by a factor."""

    FIXED: ClassVar[Mapping[str, str]] = {}
    """Of tensors that do not train, and that it needs all the same: the name of each to that of the
    trained one whose shape and shards it has."""

    PATHS: ClassVar[int] = 1
    """By how much the factors that it multiplies by are wider than the rank."""

    PEFT_REFUSED: ClassVar[tuple[str, ...]]
    """Fields of `adapter_config.json` under which the same tensors are applied in another way."""

    def __init__(self, base: ParallelLinear, options: LoRAOptions) -> None:
        """Empty tensors, on the default device, for the layer `base`."""
        super().__init__()
        self.options = options
        self.tp = base.tp
        self.span = WHOLE
        """Which tokens of the micro-batch it is given."""

    @staticmethod
    @abstractmethod
    def shapes(rows: int, columns: int, rank: int) -> Shapes:
        """The whole (unsharded) shape of each tensor, on a layer of `[rows, columns]`."""

    @abstractmethod
    def reset(self, generator: torch.Generator, weight: Weight) -> None:
        """Put the first values in. They are drawn for the whole tensor, of which a shard takes its
        part, so that every tensor-parallel degree starts from the same adapter. Every rank must
        call it."""

    @abstractmethod
    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """What merging adds to `weight`, this rank's share of the layer's frozen weight: float32,
        of its shape. Every tensor-parallel rank must call it."""

    @classmethod
    @abstractmethod
    def to_peft(cls, options: LoRAOptions) -> dict[str, Any]:
        """The fields of `adapter_config.json` that say how its tensors are applied; `r` and
        `lora_alpha` only where those of what is written are not those of `options`."""

    @classmethod
    @abstractmethod
    def from_peft(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `LoRAOptions` besides rank, alpha, dropout and targets that
        `adapter_config.json` asks for, by their names."""

    def materialise(self, device: torch.device) -> None:
        """Give each tensor memory on `device`, keeping its shape and marks."""
        for name, old in list(self.named_parameters()):
            new = nn.Parameter(torch.empty_like(old, device=device), old.requires_grad)
            mark_shard(new, shard_dim(old))
            setattr(self, name, new)

    def tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name to trained tensor, this rank's share."""
        yield from ((name, p) for name, p in self.named_parameters() if name not in self.FIXED)

    @classmethod
    def fixed_shapes(cls, rows: int, columns: int, rank: int) -> Shapes:
        """As `shapes`, of each of `FIXED`."""
        shapes = cls.shapes(rows, columns, rank)
        return {name: shapes[like] for name, like in cls.FIXED.items()}

    @classmethod
    def written(cls, tensors: Tensors) -> Tensors:
        """All tensors of one layer, those of `FIXED` too, as a PEFT folder has them: whole, by the
        names of `PEFT_TENSORS`."""
        return tensors

    @classmethod
    def held(cls, written: Tensors) -> Tensors:
        """The inverse of `written`."""
        return written
