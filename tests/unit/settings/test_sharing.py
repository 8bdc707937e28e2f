"""How many ranks share a base, from what was asked and from what a launcher says."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from llama.launch.ranks import ranks_of_host
from llama.settings import PlanOptions, TrainOptions, VerifyOptions
from llama.settings.options import parse
from llama.settings.sharing import ALL, HOST, WHOLE, Ranks, sharers

TWO_HOSTS = Ranks(16, 8)


@pytest.mark.parametrize(
    ("word", "degree", "ranks", "count"),
    [
        (WHOLE, 1, TWO_HOSTS, 1),
        (HOST, 1, TWO_HOSTS, 8),
        (HOST, 2, TWO_HOSTS, 4),
        (HOST, 8, TWO_HOSTS, 1),  # a host holds one model
        (HOST, 16, TWO_HOSTS, 1),  # two hosts do
        (ALL, 1, TWO_HOSTS, 16),
        (ALL, 4, TWO_HOSTS, 4),
        ("4", 1, TWO_HOSTS, 4),
        ("4", 4, TWO_HOSTS, 4),
        (HOST, 1, Ranks(4, 4), 4),  # one host: all of them
        (HOST, 2, Ranks(4, 1), 1),
        *((word, 1, Ranks(1, None), 1) for word in (WHOLE, HOST, ALL)),
    ],
)
def test_the_size_of_a_group(word: str, degree: int, ranks: Ranks, count: int) -> None:
    assert sharers(word, degree, ranks) == count


@pytest.mark.parametrize(
    ("word", "degree", "ranks", "says"),
    [
        ("3", 1, TWO_HOSTS, "3 does not divide the 16 data-parallel ranks"),
        ("8", 4, TWO_HOSTS, "8 does not divide the 4 data-parallel ranks"),
        ("2", 1, Ranks(1, 1), "2 does not divide the 1 data-parallel rank of"),
        ("1", 1, TWO_HOSTS, "a number of them from 2 on, or false, found '1'"),
        ("hosts", 1, TWO_HOSTS, "expected true .*found 'hosts'"),
        (HOST, 1, Ranks(16, None), "LOCAL_WORLD_SIZE.*divides the 16 data-parallel ranks"),
        (HOST, 1, Ranks(6, 4), "not as many on each host: this one has 4"),
        (HOST, 4, Ranks(12, 6), "the 6 ranks of a host are not divided by --tensor_parallel 4"),
    ],
)
def test_groups_that_cannot_be(word: str, degree: int, ranks: Ranks, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sharers(word, degree, ranks)


@pytest.mark.parametrize("cls", [TrainOptions, VerifyOptions, PlanOptions])
def test_the_option_may_stand_alone(cls: type) -> None:
    required = {"VerifyOptions": ["--deepspeed", "x"], "PlanOptions": ["--gpu", "t4"]}
    words = required.get(cls.__name__, [])
    for given, word in (
        ([], WHOLE),
        (["--shard_base"], HOST),
        (["--shard_base", "--seq_len", "64"], HOST),
        (["--shard_base", "all"], ALL),
        (["--shard_base=8"], "8"),
    ):
        assert parse(cls, [*words, *given], "x.py", "").shard_base == word


def test_each_launcher_says_how_many_ranks_a_host_has() -> None:
    assert ranks_of_host({"LOCAL_WORLD_SIZE": "4"}) == 4
    assert ranks_of_host({"LOCAL_SIZE": "4", "CROSS_SIZE": "2"}) == 4  # deepspeed
    for nothing in ({}, {"LOCAL_SIZE": "4"}, {"LOCAL_WORLD_SIZE": "x"}, {"LOCAL_WORLD_SIZE": "0"}):
        assert ranks_of_host(nothing) is None
    with mock.patch.dict(os.environ, {"LOCAL_WORLD_SIZE": "3"}):
        assert Ranks.launched(6) == Ranks(6, 3)
