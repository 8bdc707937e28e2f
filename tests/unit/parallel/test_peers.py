"""Gathering by copies, on two threads that share one memory, as two GPUs of a host do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from llama.parallel import peers
from llama.parallel.peers import Shared, by_copies, outside_bytes, peers_of
from llama.parallel.sharded import Sharers

RANKS, CPU = 2, torch.device("cpu")


class Done:
    def wait(self) -> None:
        pass


class OnThreads:
    """A `Peers` of threads: each waits for the others where memory is made known."""

    count = RANKS

    def __init__(self, rank: int, barrier: threading.Barrier, every: list[Any]) -> None:
        self.rank, self._barrier, self._every = rank, barrier, every
        self.made_known = 0

    def zeros(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def begun(self) -> Done:
        return Done()

    def shared(self, own: torch.Tensor) -> Shared:
        self.made_known += 1
        self._every[self.rank] = own
        self._barrier.wait()
        every = list(self._every)
        self._barrier.wait()
        return Shared(None, every)


def test_shares_are_made_known_once_and_lie_in_the_order_of_ranks() -> None:
    barrier, every = threading.Barrier(RANKS, timeout=20), [None] * RANKS
    order = (0, 1, 2, 1, 0, 2)

    def work(rank: int) -> tuple[list[torch.Tensor], int]:
        own: Any = OnThreads(rank, barrier, every)
        gather = by_copies(own)
        shares = [own.zeros(64).fill_(10 * unit + rank) for unit in range(3)]
        found = []
        for unit in order:
            found.append(torch.empty(RANKS * 64, dtype=torch.uint8))
            gather(found[-1], shares[unit]).wait()
        return found, own.made_known

    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(work, range(RANKS)))
    for found, made_known in results:
        assert made_known == 3
        for unit, whole in zip(order, found, strict=True):
            assert whole.view(RANKS, 64).eq(10 * unit + torch.arange(RANKS)[:, None]).all()


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What another rank says of itself; None: what this one says."""
    said: list[Any] = []

    def gathered(found: list[Any], mine: Any, group: Any) -> None:
        other = said.pop(0)
        found[:] = [mine, mine if other is None else other]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: RANKS)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: 0)
    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda own, other: other != 3)
    monkeypatch.setattr(peers, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(peers.Peers, "zeros", lambda self, nbytes: torch.zeros(nbytes))
    monkeypatch.setattr(peers.Peers, "shared", lambda self, own: Shared(None, [own]))
    yield said
    peers_of.cache_clear()


HERE = peers._whereabouts(torch.device("cuda", 0))


@pytest.mark.parametrize(
    "device, said, are_peers",
    [
        (torch.device("cuda", 0), [HERE and (HERE[0], 1), True, 78, True], True),
        (torch.device("cuda", 0), [("elsewhere", 1)], False),
        (torch.device("cuda", 0), [HERE, True], False),  # two ranks on one device
        (torch.device("cuda", 0), [HERE and (HERE[0], 3), True], False),  # no way between them
        (torch.device("cuda", 0), [HERE and (HERE[0], 4), True], False),  # one that is not shown
        (torch.device("cuda", 0), [HERE and (HERE[0], 1), False], False),  # the other says so
        (torch.device("cuda", 0), [HERE and (HERE[0], 1), True, 78, False], False),  # nor can it
        (CPU, [None], False),
    ],
    ids=["peers", "hosts", "one device", "no way", "hidden", "other", "not shown", "cpu"],
)
def test_ranks_are_peers_where_all_devices_reach_one_another(
    device: torch.device, said: list[Any], are_peers: bool, two_ranks: list[Any]
) -> None:
    two_ranks += said
    group: Any = object()
    found = peers_of(group, device)
    assert (found is not None) == are_peers
    assert found is None or found.multiprocessors == 78  # of the two the fewest, on both
    assert outside_bytes() == 0
    if not are_peers:
        peers_of.cache_clear()
        two_ranks[:] = said
        assert not Sharers.of_group(group, device).by_copies


def test_a_host_whose_processes_hand_over_no_memory_is_named(
    two_ranks: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Any, own: torch.Tensor) -> Shared:
        raise RuntimeError("pidfd_getfd: Operation not permitted\nmore of it")

    monkeypatch.setattr(peers.Peers, "shared", refused)
    two_ranks += [HERE and (HERE[0], 1), True, 78, True]
    group: Any = object()
    assert peers_of(group, torch.device("cuda", 0)) is None
    assert "not by copies: pidfd_getfd: Operation not permitted\n" in capsys.readouterr().err
