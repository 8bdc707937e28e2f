"""Loading a sharded base: what each rank reads, and that together they hold what one would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from llama.assembly.engine import shared_base
from llama.assembly.sharded import ShardedPlacement
from llama.base.dense import Dense
from llama.base.frozen import FrozenWeight
from llama.errors import UserError
from llama.model.config import ModelConfig
from llama.model.transformer import Transformer
from llama.parallel.mesh import SINGLE, Mesh, TensorParallel
from llama.parallel.sharded import ShardedBase, Sharers, is_sharded
from llama.settings import TrainOptions
from llama.weights.load import Placement, load_weights
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY

CPU = torch.device("cpu")
BIASED = replace(TINY, attention_bias=True, mlp_bias=True, n_layers=3)
TIED = replace(BIASED, tied_embedding=True, vocab_size=97)


class Counting(RandomReader):
    """Counts the elements that are asked of it."""

    elements = 0

    def read(self, *args: Any, **options: Any) -> torch.Tensor:
        found = super().read(*args, **options)
        self.elements += found.numel()
        return found


class Packed:
    """A way to hold a weight whose bytes are not those of its rows: their order is turned round,
    and a sum lies at the end."""

    BY_ROWS: ClassVar[bool] = False

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, cut: int = 0
    ) -> nn.Parameter:
        packed = torch.empty(shape.numel() + 1, dtype=torch.uint8, device=device)
        return nn.Parameter(packed, requires_grad=False)

    def fill(self, stored: torch.Tensor) -> None:
        levels = (stored.flatten().flip(0) * 100 + 128).to(torch.uint8)
        self.parameter.copy_(torch.cat([levels, levels.sum(dtype=torch.uint8)[None]]))

    def dense(self) -> torch.Tensor:
        return self.parameter.float()


class Rank:
    """One of `count` data-parallel ranks, of one place in `tp`."""

    def __init__(
        self,
        config: ModelConfig,
        rank: int,
        count: int,
        tp: TensorParallel,
        kind: type[FrozenWeight] = Dense,
    ) -> None:
        sharers = Sharers(rank, count, lambda *_: pytest.fail("loading gathers nothing"))
        self.base = ShardedBase(sharers, CPU, config.n_layers, config.tied_embedding)
        self.reader = Counting(config)
        self.model = model_of(config, self.reader, tp, kind, ShardedPlacement(self.base))


def model_of(
    config: ModelConfig,
    reader: RandomReader,
    tp: TensorParallel,
    kind: type[FrozenWeight],
    placement: Placement | None = None,
) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config, tp)
    model.requires_grad_(False)
    load_weights(model, reader, torch.float32, CPU, tp.rank, tp.size, placement, kind)
    return model


def gathered(ranks: list[Rank]) -> dict[str, torch.Tensor]:
    """The parameters of the first, by name, with the shares of all joined by hand."""
    base = ranks[0].base
    for index, unit in enumerate([base.embedding, base.head, *base.blocks]):
        others = [[r.base.embedding, r.base.head, *r.base.blocks][index] for r in ranks]
        unit.show(unit.views(torch.cat([other.share for other in others])))
    return dict(ranks[0].model.named_parameters())


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("config", [BIASED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("degree", [1, 2])
def test_together_ranks_hold_what_one_would(config: ModelConfig, count: int, degree: int) -> None:
    for shard in range(degree):
        tp = TensorParallel(shard, degree)
        ranks = [Rank(config, rank, count, tp) for rank in range(count)]
        held = gathered(ranks)
        alone = dict(model_of(config, RandomReader(config), tp, Dense).named_parameters())
        assert held.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(held[name], value), name
            assert is_sharded(held[name]) == (name != "norm.weight")
            marks = {"shard_dim", "model_parallel", "real_size"}
            assert {k: v for k, v in vars(held[name]).items() if k in marks} == vars(value), name


@pytest.mark.parametrize("count", [2, 3])
def test_each_element_is_read_once_but_for_the_rows_at_the_cuts(count: int) -> None:
    ranks = [Rank(BIASED, rank, count, TensorParallel()) for rank in range(count)]
    read = sum(rank.reader.elements for rank in ranks)
    vectors = (count - 1) * BIASED.dim  # the final norm, whole on each
    rows = (count - 1) * (BIASED.n_layers + 2) * BIASED.ffn_dim  # the longest are w2's
    once = BIASED.parameter_count() + vectors
    assert once <= read <= once + rows < 1.1 * once
    assert max(rank.reader.elements for rank in ranks) < 1.1 * once / count


def test_a_way_to_hold_that_knows_no_rows_is_cut_by_its_bytes() -> None:
    ranks = [Rank(BIASED, rank, 3, TensorParallel(), Packed) for rank in range(3)]
    alone = dict(
        model_of(BIASED, RandomReader(BIASED), TensorParallel(), Packed).named_parameters()
    )
    held = gathered(ranks)
    assert held["layers.1.attention.wq.weight"].dtype == torch.uint8
    assert all(torch.equal(held[name], value) for name, value in alone.items())


def test_a_weight_that_is_not_finite_is_named_by_the_rank_that_reads_it() -> None:
    class Spoilt(Counting):
        def read(self, name: str, *args: Any, **options: Any) -> torch.Tensor:
            found = super().read(name, *args, **options)
            start = args[1] if len(args) > 1 else 0
            if name == "layers.1.feed_forward.w2.weight" and start <= 3 < start + len(found):
                found[3 - start, 5] = float("nan")
            return found

    problems = []
    for rank in range(4):
        sharers = Sharers(rank, 4, lambda *_: pytest.fail("loading gathers nothing"))
        base = ShardedBase(sharers, CPU, BIASED.n_layers, False)
        try:
            reader = Spoilt(BIASED)
            model_of(BIASED, reader, TensorParallel(), Dense, ShardedPlacement(base))
        except UserError as error:
            problems += error.problems
    assert len(problems) == 1 and "layers.1.feed_forward.w2.weight" in problems[0]


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        (1, "no effect on one data-parallel rank, which keeps all of the base"),
        (2, "no effect on hosts of one data-parallel rank, which keeps all of the base: --shard_b"),
    ],
)
def test_where_no_rank_shares_with_another_that_is_said(
    ranks: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = Mesh(0, ranks, SINGLE, 0, ranks, None)  # type: ignore[arg-type]
    source = ModelSource("tiny", RandomReader(TINY), None)
    assert shared_base(source, TrainOptions(), mesh, CPU) is None
    assert "--shard_base" not in capsys.readouterr().err
    assert shared_base(source, TrainOptions(shard_base="true"), mesh, CPU) is None
    assert f"--shard_base: has {says}" in capsys.readouterr().err
