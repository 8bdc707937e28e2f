"""What two hosts say of a run, and what is made of it."""

from __future__ import annotations

import pytest

from llama.train.start.sameness import differences

HOSTS = ("a", "a", "b", "b")


def test_the_same_everywhere() -> None:
    assert differences([{"--seed": "0"}] * 4, HOSTS) == []


def test_what_differs_is_named_with_ranks_and_hosts() -> None:
    said = [{"--seed": "0", "--seq_len": "64"}] * 3 + [{"--seed": "0", "--seq_len": "128"}]
    assert differences(said, HOSTS) == [
        "--seq_len is not the same on every rank: 64 on ranks 0 (a), 1 (a), 2 (b); "
        "128 on rank 3 (b)"
    ]


def test_what_one_rank_was_not_given() -> None:
    said = [{"DeepSpeed JSON: fp16.enabled": "true"}, {}]
    (line,) = differences(said, HOSTS[1:])
    assert line.endswith("true on rank 0 (a); not given on rank 1 (b)")


def test_tokens_are_not_blamed_where_the_contents_differ() -> None:
    same = {"contents of --data": "x", "tokens of --data": "y"}
    other_file = {"contents of --data": "X", "tokens of --data": "Y"}
    other_tokenizer = {"contents of --data": "x", "tokens of --data": "Y"}
    (line,) = differences([same, other_file], HOSTS[1:])
    assert line.startswith("contents of --data is not")
    (line,) = differences([same, other_tokenizer], HOSTS[1:])
    assert line.startswith("tokens of --data is not")


@pytest.mark.parametrize("count", [5, 64])
def test_of_many_ranks_a_few_are_named(count: int) -> None:
    said = [{"--seed": "0"}] + [{"--seed": "1"}] * (count - 1)
    (line,) = differences(said, ["a"] * count)
    more = f" and {count - 5} more" if count > 5 else ""
    assert line.endswith(f"1 on ranks 1 (a), 2 (a), 3 (a), 4 (a){more}")
