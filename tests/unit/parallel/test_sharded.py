"""Shares and rooms of a sharded base: what lies where, what is gathered when, in one process that
plays all ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llama.parallel.sharded import (
    ALIGNED,
    ROOMS,
    Pending,
    ShardedBase,
    Sharers,
    Unit,
    is_sharded,
    rooms,
    share_bytes,
    whole,
)

CPU = torch.device("cpu")
RANKS = 3
SHAPES = {"w": (5, 7), "v": (11,), "packed": (301,)}
TYPES = {"w": torch.float32, "v": torch.bfloat16, "packed": torch.uint8}


class Gathering:
    """Joins the shares of all ranks when it is waited for, and notes what is asked of it."""

    def __init__(self) -> None:
        self.bases: list[ShardedBase] = []
        self.log: list[str] = []

    def base(self, rank: int, blocks: int = 1, tied: bool = False) -> ShardedBase:
        def gather(into: torch.Tensor, share: torch.Tensor) -> Pending:
            return self._begun(rank, into, share)

        self.bases.append(ShardedBase(Sharers(rank, RANKS, gather), CPU, blocks, tied))
        return self.bases[-1]

    def _begun(self, rank: int, into: torch.Tensor, share: torch.Tensor) -> Pending:
        name = names(self.bases[rank])[share.data_ptr()]
        self.log.append(f"begin {name}")
        return _Flight(self, name, into)


class _Flight:
    def __init__(self, gathering: Gathering, name: str, into: torch.Tensor) -> None:
        self._gathering, self._name, self._into = gathering, name, into
        into.fill_(255)  # nobody may read it yet, nor what was there before

    def wait(self) -> None:
        self._gathering.log.append(f"wait {self._name}")
        shares = [units(base)[self._name].share for base in self._gathering.bases]
        self._into.copy_(torch.cat(shares))


def units(base: ShardedBase) -> dict[str, Unit]:
    blocks = {str(number): unit for number, unit in enumerate(base.blocks)}
    return {"embedding": base.embedding, "head": base.head, **blocks}


def names(base: ShardedBase) -> dict[int, str]:
    return {unit.share.data_ptr(): name for name, unit in units(base).items()}


def content(name: str, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    drawn = torch.randint(0, 200, SHAPES[name], generator=generator)
    return drawn.to(TYPES[name])


def filled(unit: Unit, number: int) -> dict[str, nn.Parameter]:
    """The parameters of SHAPES, put into `unit`."""
    found = {}
    for name, shape in SHAPES.items():
        unit.expect(name, torch.empty(shape, dtype=TYPES[name], device="meta"))
    for name in SHAPES:
        value = content(name, number)
        found[name] = nn.Parameter(value.clone(), requires_grad=False)
        unit.put(name, found[name], value, 0)
    return found


def test_shares_are_equal_and_a_rank_holds_its_own_alone() -> None:
    gathering = Gathering()
    bases = [gathering.base(rank) for rank in range(RANKS)]
    held = [filled(base.blocks[0], 0) for base in bases]
    sizes = [content(name, 0).nbytes for name in SHAPES]
    for base, parameters in zip(bases, held, strict=True):
        (unit,) = base.blocks
        assert unit.share.nbytes == share_bytes(sizes, RANKS) == unit.size // RANKS
        assert sum(sizes) <= unit.size <= sum(sizes) + (len(sizes) + RANKS) * ALIGNED
        assert all(is_sharded(p) and p.untyped_storage().nbytes() == 0 for p in parameters.values())


def test_a_unit_in_use_has_every_parameter_bit_for_bit_at_an_aligned_place() -> None:
    gathering = Gathering()
    held = [filled(gathering.base(rank).blocks[0], 3) for rank in range(RANKS)]
    base = gathering.bases[1]
    base.use(base.blocks[0])
    for name, parameter in held[1].items():
        assert parameter.dtype == TYPES[name] and torch.equal(parameter, content(name, 3))
        assert parameter.storage_offset() * parameter.element_size() % ALIGNED == 0
    assert all(parameter.numel() == 0 for parameter in held[0].values()), "the other has not asked"


def test_a_rank_needs_no_more_of_a_parameter_than_its_own_bytes() -> None:
    """What it is given begins where it says and need not go further than its share."""
    gathering = Gathering()
    for rank in range(RANKS):
        unit = gathering.base(rank).blocks[0]
        unit.expect("w", torch.empty(400, 3, device="meta"))
        value = torch.arange(1200.0).view(400, 3)
        first, end = unit.own_bytes("w")
        rows = slice(first // 12, -(-end // 12))
        parameter = nn.Parameter(value.clone(), requires_grad=False)
        unit.put("w", parameter, value[rows], rows.start * 12)
    base = gathering.bases[0]
    base.use(base.blocks[0])
    assert torch.equal(base.blocks[0].views(base._held[base.blocks[0]].buffer)[0], value)


def whole_model(blocks: int, tied: bool = False) -> Gathering:
    gathering = Gathering()
    for rank in range(RANKS):
        base = gathering.base(rank, blocks, tied)
        for number, unit in enumerate(dict.fromkeys(units(base).values())):
            filled(unit, number)
    return gathering


def passes(base: ShardedBase, backward: bool = True) -> None:
    """A micro-batch's order of use."""
    units = [*base.blocks, base.head]
    base.use(base.embedding, then=base.blocks[0])
    for layer in range(len(base.blocks)):
        base.use(units[layer], then=units[layer + 1])
        assert all(p.numel() for p in units[layer]._parameters.values())
    base.use(base.head)
    for layer in reversed(range(len(base.blocks) if backward else 0)):
        base.use(units[layer], then=units[layer - 1] if layer else None)
        assert all(p.numel() for p in units[layer]._parameters.values())


def test_a_block_is_on_its_way_before_the_one_ahead_is_waited_for() -> None:
    gathering = whole_model(5)
    base = gathering.bases[0]
    base.use(base.embedding, then=base.blocks[0])
    assert gathering.log == ["begin embedding", "begin 0", "wait embedding"]
    gathering.log.clear()
    base.use(base.blocks[0], then=base.blocks[1])
    base.use(base.blocks[1], then=base.blocks[2])
    assert gathering.log == ["begin 1", "wait 0", "begin 2", "wait 1"]


@pytest.mark.parametrize("blocks", [2, 3, 4, 7])
def test_each_micro_batch_gathers_a_block_twice_at_most(blocks: int) -> None:
    """But for the first pass of all; those that a pass ends with are there when it turns round."""
    gathering = whole_model(blocks)
    base = gathering.bases[0]
    passes(base)
    gathering.log.clear()
    passes(base)
    begun = [line.removeprefix("begin ") for line in gathering.log if line.startswith("begin")]
    assert [begun.count(end) for end in ("embedding", "head")] == [1, 1]
    assert len(begun) - 2 == 2 * (blocks - rooms(blocks))
    assert all(begun.count(str(block)) <= 2 for block in range(blocks))


def test_no_more_rooms_are_taken_than_said_and_what_left_is_empty() -> None:
    gathering = whole_model(7)
    base = gathering.bases[0]
    passes(base)
    passes(base, backward=False)
    there = [u for u in units(base).values() if any(p.numel() for p in u._parameters.values())]
    assert len(there) <= ROOMS + 1 and base.head in there and base.embedding not in there
    block = base.blocks[0].size
    assert base.room_bytes() == base.most_room_bytes() == ROOMS * block + base.head.size
    assert base.held_bytes() == sum(unit.share.nbytes for unit in units(base).values())


def test_a_base_of_few_blocks_is_never_whole_either() -> None:
    for blocks in range(1, 9):
        assert 1 <= rooms(blocks) <= ROOMS and (blocks == 1 or rooms(blocks) < blocks)


def test_a_tied_head_is_the_embedding() -> None:
    gathering = whole_model(4, tied=True)
    base = gathering.bases[0]
    assert base.head is base.embedding
    passes(base, backward=False)
    gathering.log.clear()
    base.use(base.embedding, then=base.blocks[0])  # it is there, from the head's turn
    assert "begin embedding" not in gathering.log and "begin head" not in gathering.log


def test_one_parameter_can_be_read_whole() -> None:
    gathering = Gathering()
    held = [filled(gathering.base(rank, 3).blocks[2], 4) for rank in range(RANKS)]
    with whole(held[0]["v"]):
        assert torch.equal(held[0]["v"], content("v", 4))


def test_a_gathering_that_fails_is_not_taken_for_done() -> None:
    class Broken:
        def wait(self) -> None:
            raise RuntimeError("connection closed by peer")

    base = ShardedBase(Sharers(0, RANKS, lambda *_: Broken()), CPU, 1, False)
    parameters = filled(base.blocks[0], 0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="connection closed"):
            base.use(base.blocks[0])
    assert all(parameter.numel() == 0 for parameter in parameters.values())
