"""Weights of data sets: how often rows come, on any topology."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from llama.data.batches import Epochs
from llama.data.prepare import Reading, prepare
from llama.data.shares import Share, epoch_rows, rows_of_epoch
from llama.data.types import IGNORE, Batch, Example
from llama.files.weighted import Weighted, weight_problems, weighted
from llama.tokenizer.templates import load_template
from tests.support.large_rows import write
from tests.support.tokenizer_files import byte_tokenizer


@pytest.mark.parametrize(
    ("weight", "of_epoch"), [("1", 12), ("2", 24), ("1/2", 6), ("1/3", 4), ("5/2", 30), ("0.01", 1)]
)
def test_each_row_comes_as_often_as_any(weight: str, of_epoch: int) -> None:
    shares = (Share(0, 3), Share(3, 15, Fraction(weight)))
    assert rows_of_epoch(shares) == 3 + of_epoch
    seen: Counter[int] = Counter()
    for epoch in range(12):
        rows = epoch_rows(shares, 5, epoch).tolist()
        assert len(rows) == 3 + of_epoch and rows == epoch_rows(shares, 5, epoch).tolist()
        seen.update(rows)
    assert {seen[row] for row in range(3)} == {12}
    assert {seen[row] for row in range(3, 15)} == {of_epoch}
    if of_epoch == 6:
        halves = [row for epoch in (0, 1) for row in epoch_rows(shares[1:], 0, epoch).tolist()]
        assert sorted(halves) == list(range(3, 15))
        assert epoch_rows(shares, 0, 0).tolist() != epoch_rows(shares, 1, 0).tolist()


def tokens_of(windows: list[list[Batch]]) -> list[list[int]]:
    return [batch.tokens.tolist() for batches in windows for batch in batches]


def test_every_split_over_ranks_learns_the_same() -> None:
    rows = [[Example([i, i], [IGNORE, i], i)] for i in range(15)]
    shares = (Share(0, 3), Share(3, 15, Fraction(3, 2)))
    for epoch in (0, 3):
        found = []
        for size, accumulation in ((1, 4), (2, 2), (4, 1)):
            ranks = [
                list(Epochs(rows, 1, accumulation, rank, size, 7, shares).windows(epoch))
                for rank in range(size)
            ]
            assert len(ranks[0]) == -(-21 // 4)
            found.append(
                [
                    sorted(
                        (b.stream, int(b.tokens[0])) for r in ranks for b in r[at] if b.supervised
                    )
                    for at in range(len(ranks[0]))
                ]
            )
        assert found[0] == found[1] == found[2]
    late = list(Epochs(rows, 1, 4, seed=7, shares=shares).windows(3, start=2))
    whole = list(Epochs(rows, 1, 4, seed=7, shares=shares).windows(3))[2:]
    assert [b.tokens.tolist() for w in late for b in w] == [
        b.tokens.tolist() for w in whole for b in w
    ]


def test_a_share_of_weight_one_is_the_order_without() -> None:
    rows = [[Example([i, i], [IGNORE, i], i)] for i in range(9)]
    plain, one = Epochs(rows, 2, 1, seed=3), Epochs(rows, 2, 1, seed=3, shares=(Share(0, 9),))
    for left, right in zip(plain.windows(2), one.windows(2), strict=True):
        assert [b.tokens.tolist() for b in left] == [b.tokens.tolist() for b in right]


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.json", "a.json", 1),
        ("a.json:2", "a.json", 2),
        ("a.json:0.5", "a.json", Fraction(1, 2)),
        ("a.json:.5", "a.json", Fraction(1, 2)),
        ("d/a.json:1/3", "d/a.json", Fraction(1, 3)),
        ("a:b:2", "a:b", 2),
        ("a.json:two", "a.json:two", 1),
        ("a.json:-1", "a.json:-1", 1),
    ],
)
def test_weights_are_read(text: str, path: str, weight: Fraction) -> None:
    assert weighted([Path(text)]) == [Weighted(Path(path), Fraction(weight))]


def test_a_path_that_exists_is_no_weight(tmp_path: Path) -> None:
    (tmp_path / "part:2").write_text("[]")
    assert weighted([tmp_path / "part:2"]) == [Weighted(tmp_path / "part:2")]
    assert weighted([tmp_path / "part:2:3"]) == [Weighted(tmp_path / "part:2", Fraction(3))]


@pytest.mark.parametrize("weight", ["0", "0.0", "1/0", "1001"])
def test_weights_that_say_nothing(weight: str) -> None:
    (line,) = weight_problems("data", [Path(f"a:{weight}")])
    assert line.startswith(f"--data: a:{weight}: ") and "above 0 and at most 1,000" in line


def test_sets_of_one_weight_are_packed_together(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    template = load_template("chatml", tokenizer)
    for name, count in (("a", 30), ("b", 20), ("c", 10)):
        write(tmp_path / name, count)

    def made(*names: str):
        return prepare([tmp_path / n for n in names], template, tokenizer, Reading(800))

    plain, alike = made("a", "b", "c"), made("a:2", "b:2", "c:2")
    assert list(plain.packed) == list(alike.packed) and alike.shares[0].weight == 2
    mixed = made("a", "b:1/2", "c")
    assert [share.weight for share in mixed.shares] == [Fraction(1, 2), 1]
    half, rest = (
        {e.row for row in mixed.packed[share.start : share.end] for e in row}
        for share in mixed.shares
    )
    rows = {e.row for e in mixed.examples}
    assert (
        half == {row for row in rows if 30 < row <= 50} and half | rest == rows and not half & rest
    )
    assert sum(map(len, mixed.packed)) == len(mixed.examples)
