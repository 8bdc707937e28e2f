"""How the ranks of a run are divided: over a model, over the tokens of a row, over a base."""

from __future__ import annotations

from tests.bad_inputs.setting import Case, Setting
from tests.bad_inputs.spoiling import ranks, words


def hosts_not_alike(setting: Setting) -> None:
    ranks(5, "--shard_base")(setting)
    setting.environment["LOCAL_WORLD_SIZE"] = "3"


def shard_base_under_zero3(setting: Setting) -> None:
    setting.edit_json("ds.json", zero_optimization={"stage": 3})
    setting.more.append("--shard_base")


CASES = [
    Case(
        "`--shard_base` where all trains",
        words("--method", "full", "--shard_base"),
        ("--shard_base: shares out what is frozen, and with --method full nothing is",),
    ),
    Case(
        "`--shard_base` and ZeRO-3",
        shard_base_under_zero3,
        ("--shard_base: zero_optimization.stage is 3 in ds.json",),
    ),
    Case("`--shard_base al`", words("--shard_base", "al"), ("found 'al'; did you mean all?",)),
    Case(
        "a base shared by more ranks than divide theirs",
        ranks(8, "--shard_base", "3"),
        ("--shard_base: 3 does not divide the 8 data-parallel ranks",),
    ),
    Case(
        "a base shared by hosts of which nothing is known",
        ranks(4, "--shard_base"),
        ("--shard_base: nothing says how many ranks this host has (LOCAL_WORLD_SIZE)",),
    ),
    Case(
        "a base shared by hosts that are not alike",
        hosts_not_alike,
        ("--shard_base: the 5 ranks of this run are not as many on each host: this one has 3",),
    ),
    Case("more ranks a model than ranks", words("--tensor_parallel", "2"), ("1 process cannot",)),
    Case("ranks no multiple of the degree", ranks(3, "--tensor_parallel", "2"), ("3 processes",)),
    Case("`--tensor_parallel 0`", words("--tensor_parallel", "0"), ("expected at least 1",)),
    Case(
        "a degree that does not divide the heads",
        ranks(8, "--tensor_parallel", "8"),
        ("does not divide the model's kv heads 4",),
    ),
    Case(
        "a degree that divides nothing",
        ranks(5, "--tensor_parallel", "5"),
        ("query heads 8, kv heads 4, feed-forward width 192:",),
    ),
    Case(
        "more ranks a row than ranks",
        words("--sequence_parallel", "2"),
        ("--sequence_parallel: 1 process cannot be divided into groups of 2;",),
    ),
    Case(
        "ranks no multiple of both degrees",
        ranks(6, "--tensor_parallel", "2", "--sequence_parallel", "2"),
        ("6 processes cannot be divided into groups of 2 x 2 (--tensor_parallel x this)",),
    ),
    Case("`--sequence_parallel 0`", words("--sequence_parallel", "0"), ("expected at least 1",)),
    Case(
        "ranks a row that share no heads evenly",
        ranks(3, "--sequence_parallel", "3"),
        ("8 query heads and 4 kv heads: 1, 2, 4, 8 would do",),
    ),
    Case(
        "the same on each shard",
        ranks(16, "--tensor_parallel", "2", "--sequence_parallel", "8"),
        ("4 query heads and 2 kv heads on each of its shards: 1, 2, 4 would do",),
    ),
]
