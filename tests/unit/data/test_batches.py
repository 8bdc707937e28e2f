"""Packing and batching: nothing lost, nothing doubled, and every split over ranks the same."""

from __future__ import annotations

import random

import pytest
import torch

from llama.data.batches import Epochs, eval_batches, make_batch
from llama.data.packing import Packed, PackedRow, pack_lengths
from llama.data.types import IGNORE, Batch, Example


def documents(count: int, longest: int = 30, seed: int = 0) -> list[Example]:
    """Documents whose tokens are all different, so that any mix-up shows."""
    dice = random.Random(seed)
    found = []
    for row in range(1, count + 1):
        ids = [1000 * row + i for i in range(dice.randrange(2, longest + 1))]
        prompt = dice.randrange(1, len(ids))
        found.append(Example(ids, [IGNORE] * prompt + ids[prompt:], row))
    return found


def pack_examples(examples: list[Example], seq_len: int, pack: bool = True) -> list[PackedRow]:
    lengths = [len(example.input_ids) for example in examples]
    return list(Packed(examples, pack_lengths(lengths, seq_len, pack)))


def rows_of(batches: list[Batch]) -> list[int]:
    """The document rows in `batches`, fillers left out."""
    return [
        int(batch.tokens[start]) // 1000
        for batch in batches
        if batch.supervised
        for start in batch.boundaries[:-1]
    ]


def same(left: Batch, right: Batch) -> bool:
    return (
        torch.equal(left.tokens, right.tokens)
        and torch.equal(left.positions, right.positions)
        and torch.equal(left.targets, right.targets)
        and left.boundaries == right.boundaries
        and (left.supervised, left.stream) == (right.supervised, right.stream)
    )


def first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's loop over all rows."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        for row in rows:
            if sum(row) + length <= capacity:
                row.append(length)
                break
        else:
            rows.append([length])
    return rows


def test_packing_as_drawn() -> None:
    lengths = {"a": 3, "b": 6, "c": 5, "d": 2, "e": 4}
    examples = [Example([0] * n, [0] * n, i) for i, n in enumerate(lengths.values())]
    packed = pack_examples(examples, 8)
    assert [[e.row for e in row] for row in packed] == [[1, 3], [2, 0], [4]]


@pytest.mark.parametrize("count", [1, 2, 7, 64, 300])
def test_packing_is_first_fit_decreasing(count: int) -> None:
    examples = documents(count)
    packed = pack_examples(examples, 40)
    lengths = [[len(e.input_ids) for e in row] for row in packed]
    assert lengths == first_fit_decreasing([len(e.input_ids) for e in examples], 40)
    assert sorted(e.row for row in packed for e in row) == [e.row for e in examples]
    assert max(sum(row) for row in lengths) <= 40


def test_packing_off_and_empty() -> None:
    examples = documents(5)
    assert pack_examples(examples, 40, pack=False) == [[example] for example in examples]
    assert pack_examples([], 40) == []


def test_example_longer_than_a_row_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        pack_examples(documents(3), 1)


def test_batch_by_hand() -> None:
    a = Example([10, 11, 12], [IGNORE, 11, 12], 1)
    b = Example([20, 21], [20, 21], 2)
    c = Example([30, 31, 32], [IGNORE, IGNORE, 32], 3)
    batch = make_batch([[a, b], [c]], stream=5)
    assert batch.tokens.tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.targets.tolist() == [11, 12, IGNORE, 21, IGNORE, IGNORE, 32, IGNORE]
    assert batch.boundaries == (0, 3, 5, 8)
    assert batch.supervised == 4 == a.supervised + b.supervised + c.supervised
    assert batch.stream == 5
    assert {t.dtype for t in (batch.tokens, batch.positions, batch.targets)} == {torch.int64}


def test_whole_text_supervises_no_document_border() -> None:
    """With every position a label, the first token of a document is nobody's target."""
    batch = make_batch([[Example([7, 8], [7, 8], 1), Example([9, 6], [9, 6], 2)]], 0)
    assert batch.targets.tolist() == [8, IGNORE, 6, IGNORE]


def all_ranks(
    rows: list[PackedRow], micro_batch: int, accumulation: int, size: int, epoch: int = 0
) -> list[list[list[Batch]]]:
    """Windows of each rank: [rank][window][micro-batch]."""
    return [
        list(Epochs(rows, micro_batch, accumulation, rank, size, seed=3).windows(epoch))
        for rank in range(size)
    ]


@pytest.mark.parametrize("count", [1, 3, 8, 16, 21, 40])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_every_split_steps_over_the_same_micro_batches(count: int, micro_batch: int) -> None:
    rows = [[example] for example in documents(count)]
    (reference,) = all_ranks(rows, micro_batch, accumulation=4, size=1)
    for size, accumulation in ((2, 2), (4, 1)):
        ranks = all_ranks(rows, micro_batch, accumulation, size)
        for window, expected in enumerate(reference):
            together = [batch for rank in ranks for batch in rank[window]]
            real = sorted((b for b in together if b.supervised), key=lambda b: b.stream)
            assert len(real) == len(expected)
            assert all(same(left, right) for left, right in zip(real, expected, strict=True))
            assert len({len(rank[window]) for rank in ranks}) == 1
            streams = [batch.stream for batch in together]
            assert sorted(streams) == list(range(len(streams)))
            for rank, batches in enumerate(ranks):
                assert all(batch.stream % size == rank for batch in batches[window])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 7, 24, 25])
def test_each_row_once_an_epoch(count: int, size: int) -> None:
    rows = [[example] for example in documents(count)]
    ranks = all_ranks(rows, micro_batch=2, accumulation=2, size=size)
    seen = [row for windows in ranks for batches in windows for row in rows_of(batches)]
    assert sorted(seen) == list(range(1, count + 1))
    expected = Epochs(rows, 2, 2, 0, size).windows_per_epoch
    assert all(len(windows) == expected == -(-count // (4 * size)) for windows in ranks)
    assert all(len(batches) <= 2 for windows in ranks for batches in windows)


def test_rank_with_nothing_left_gets_a_batch_with_nothing_supervised() -> None:
    rows = [documents(3)]
    ranks = all_ranks(rows, micro_batch=2, accumulation=3, size=4)
    assert [len(windows) for windows in ranks] == [1, 1, 1, 1]
    assert [len(windows[0]) for windows in ranks] == [1, 1, 1, 1]
    assert rows_of(ranks[0][0]) == [1, 2, 3]
    for rank in (1, 2, 3):
        (filler,) = ranks[rank][0]
        assert filler.supervised == 0
        assert (filler.targets == IGNORE).all()
        assert filler.boundaries == (0, len(filler.tokens))
        assert len(filler.tokens) == len(filler.positions) == len(filler.targets) > 0
        assert filler.stream == rank


def test_order_follows_from_seed_and_epoch_alone() -> None:
    rows = [[example] for example in documents(50)]

    def order(seed: int, epoch: int, micro_batch: int = 1, accumulation: int = 1) -> list[int]:
        epochs = Epochs(rows, micro_batch, accumulation, seed=seed)
        return [row for batches in epochs.windows(epoch) for row in rows_of(batches)]

    assert order(0, 0) == order(0, 0) == order(0, 0, 4, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    torch.manual_seed(1)
    random.seed(1)
    assert order(0, 0) == order(0, 0)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resume_within_an_epoch(start: int) -> None:
    rows = [[example] for example in documents(14)]
    epochs = Epochs(rows, 2, 2, rank=0, size=1, seed=9)
    whole, rest = list(epochs.windows(2)), list(epochs.windows(2, start=start))
    assert len(rest) == len(whole) - start
    for left, right in zip(whole[start:], rest, strict=True):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_sees_each_row_once_in_order(size: int) -> None:
    rows = pack_examples(documents(11), 40)
    ranks = [list(eval_batches(rows, 2, rank, size)) for rank in range(size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = sorted((b for r in ranks for b in r if b.supervised), key=lambda b: b.stream)
    expected = [example.row for row in rows for example in row]
    assert rows_of(batches) == expected
    assert sum(b.supervised for b in batches) == sum(e.supervised for row in rows for e in row)
