"""Sums and gathering by copies, on two threads that share one memory, as two GPUs of a host do."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from llama.parallel.peers import PARTS, PairSums, Shared, by_copies, outside_bytes, peers_of

RANKS = 2


class Signals:
    """As torch's handle: a signal is one, and a second waits until the first was taken."""

    def __init__(self, rank: int, slots: dict[Any, list[threading.Semaphore]]) -> None:
        self._rank, self._slots = rank, slots

    def put_signal(self, to: int, channel: int, _patience: int) -> None:
        free, there = self._slots[self._rank, to, channel]
        assert free.acquire(timeout=20)
        there.release()

    def wait_signal(self, source: int, channel: int, _patience: int) -> None:
        free, there = self._slots[source, self._rank, channel]
        assert there.acquire(timeout=20)
        free.release()


class Done:
    def wait(self) -> None:
        pass


class Memory:
    """What the ranks have in common."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=20)
        self.own: list[Any] = [None] * RANKS
        self.slots: dict[Any, list[threading.Semaphore]] = defaultdict(
            lambda: [threading.Semaphore(1), threading.Semaphore(0)]
        )
        for key in [(a, 1 - a, channel) for a in range(RANKS) for channel in range(2 * PARTS)]:
            self.slots[key]


class OnThreads:
    """A `Peers` of threads."""

    device = torch.device("cpu")
    count = RANKS

    def __init__(self, rank: int, memory: Memory) -> None:
        self.rank, self._memory = rank, memory
        self.shared_so_far = 0

    def zeros(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def begun(self) -> Done:
        return Done()

    def shared(self, own: torch.Tensor) -> Shared:
        memory = self._memory
        self.shared_so_far += 1
        memory.own[self.rank] = own
        memory.barrier.wait()
        every = list(memory.own)
        memory.barrier.wait()
        assert len({x.nbytes for x in every}) == 1
        return Shared(Signals(self.rank, memory.slots), every)


def on_both(work: Callable[[Any], Any]) -> list[Any]:
    memory = Memory()
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(lambda rank: work(OnThreads(rank, memory)), range(RANKS)))


def share(rank: int, number: int, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randn(size, 3, generator=generator).to(dtype)


@pytest.mark.parametrize("at_a_time", range(1, PARTS + 1))
def test_every_sum_is_of_the_shares_that_were_given_for_it(at_a_time: int) -> None:
    """Far more than there is room for, at first of one size, then of a larger one."""
    sizes = [5] * 12 + [40] * 12

    def work(peers: Any) -> list[torch.Tensor]:
        sums, found = PairSums(peers), []
        for first in range(0, len(sizes), at_a_time):
            numbers = range(first, first + at_a_time)
            shares = [share(peers.rank, n, sizes[n]) for n in numbers]
            others = [sums.begin(x) for x in shares]
            found += [x + other() for x, other in zip(shares, others, strict=True)]
        return found

    expected = [share(0, n, size) + share(1, n, size) for n, size in enumerate(sizes)]
    for found in on_both(work):
        for number, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(x, y), number


def test_no_more_are_begun_than_there_is_room_for() -> None:
    def work(peers: Any) -> None:
        sums = PairSums(peers)
        for number in range(PARTS):
            sums.begin(share(peers.rank, number, 4))
        with pytest.raises(AssertionError):
            sums.begin(share(peers.rank, PARTS, 4))

    on_both(work)


def test_shares_are_made_known_once_and_lie_in_the_order_of_ranks() -> None:
    def work(peers: Any) -> tuple[list[torch.Tensor], int]:
        gather = by_copies(peers)
        shares = [peers.zeros(64).fill_(10 * unit + peers.rank) for unit in range(3)]
        found = []
        for unit in (0, 1, 2, 1, 0, 2):
            whole = torch.empty(RANKS * 64, dtype=torch.uint8)
            gather(whole, shares[unit]).wait()
            found.append(whole)
        return found, peers.shared_so_far

    for found, shared_so_far in on_both(work):
        assert shared_so_far == 3
        for unit, whole in zip((0, 1, 2, 1, 0, 2), found, strict=True):
            assert whole.view(RANKS, 64).eq(10 * unit + torch.arange(RANKS)[:, None]).all()


def test_cpus_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 1)

    def gathered(found: list[Any], mine: Any, group: Any) -> None:
        found[:] = [mine]

    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    group: Any = object()
    assert peers_of(group, torch.device("cpu")) is None
    assert outside_bytes() == 0
