"""The words that `--shard_base` takes, and how many ranks share a base by them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from llama.files.inputs import nearest
from llama.launch.ranks import ranks_of_host

WHOLE, HOST, ALL = "false", "true", "all"
EXPECTED = (
    f"expected {HOST} (the data-parallel ranks of a host), {ALL}, a number of them from 2 on, "
    f"or {WHOLE}"
)


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, as far as they are known before they meet."""

    count: int
    of_host: int | None
    """How many of them each host has; None where nothing says so."""

    @classmethod
    def launched(cls, count: int) -> Ranks:
        """As the launcher of this one says, which started `count` of them."""
        return cls(count, ranks_of_host(os.environ))


def sharers(word: str, degree: int, ranks: Ranks) -> int:
    """How many data-parallel ranks hold one base together, each a share, by what `--shard_base`
    says; 1: each holds a whole one. With a model of `degree` ranks, which must divide their number.
    The first so many data-parallel ranks are a group, the next so many another, and so on: ranks of
    one host have numbers in a row. Raises `ValueError` with what is wrong."""
    data_parallel = ranks.count // degree
    if word == WHOLE:
        return 1
    if word == ALL:
        return data_parallel
    if word == HOST:
        return _of_host(degree, ranks)
    if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 1):
        raise ValueError(f"{EXPECTED}, found {word!r}{nearest(word, (HOST, ALL, WHOLE))}")
    if data_parallel % int(word):
        raise ValueError(
            f"{int(word)} does not divide the {data_parallel} data-parallel "
            f"rank{'s' if data_parallel > 1 else ''} of this run"
        )
    return int(word)


def _of_host(degree: int, ranks: Ranks) -> int:
    """Of the ranks of one host. Where one model takes several hosts, none of them shares it."""
    count, here = ranks.count, ranks.of_host
    if count == degree:
        return 1
    todo = f"give {ALL}, or a number that divides the {count // degree} data-parallel ranks"
    if here is None:
        raise ValueError(f"nothing says how many ranks this host has (LOCAL_WORLD_SIZE): {todo}")
    if count % here:
        raise ValueError(
            f"the {count} ranks of this run are not as many on each host: this one has {here}; "
            f"{todo}"
        )
    if here % degree and degree % here:
        raise ValueError(
            f"the {here} ranks of a host are not divided by --tensor_parallel {degree}; {todo}"
        )
    return max(1, here // degree)
