"""Block inputs in host memory: the order of copies, and what memory is held for how long.

On the CPU copies are plain; that nothing is read before it was copied is shown by copies that are
made as late as they may be."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused import offload
from llama.fused.install import RunFused, install
from llama.fused.offload import HostInputs, PlainCopies
from llama.model.kept import Kept
from llama.model.transformer import Transformer
from tests.parity.test_packing import documents, loss_and_gradients, trained_model
from tests.support.model_files import TINY

CPU = torch.device("cpu")
LAYERS = TINY.n_layers


class LateCopies(PlainCopies):
    """Each copy is made when it is waited for, or when one that was asked for after it is."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rooms: list[torch.Tensor] = []
        self._asked: list[Any] = []

    def room(self, nbytes: int) -> torch.Tensor:
        self.rooms.append(super().room(nbytes))
        return self.rooms[-1]

    def _later(self, what: str, copy: Any) -> Any:
        token = object()
        self.said.append(what)
        self._asked.append((token, copy))
        return token

    def to_host(self, x: torch.Tensor, room: torch.Tensor) -> Any:
        copy = super().to_host
        return self._later(f"out {self._number(room)}", lambda: copy(x, room))

    def to_device(self, room: torch.Tensor, out: torch.Tensor) -> Any:
        out.fill_(torch.nan)
        copy = super().to_device
        return self._later(f"back {self._number(room)}", lambda: copy(room, out))

    def _number(self, room: torch.Tensor) -> int:
        return next(n for n, other in enumerate(self.rooms) if other is room)

    def wait(self, copied: Any) -> None:
        while any(token is copied for token, _ in self._asked):
            self._asked.pop(0)[1]()

    def finish(self) -> None:
        self.said.append("finish")
        while self._asked:
            self._asked.pop(0)[1]()


def made_on_host(copies: PlainCopies) -> Transformer:
    made = trained_model(0.3)
    assert install(made) is None and isinstance(made.run_block, RunFused)
    made.run_block.host = HostInputs(copies)
    made.keep([Kept.HOST] * LAYERS)
    return made


def results(made: Transformer, passes: list[list[int]]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    found = []
    for lengths in passes:
        inputs = model_inputs(make_batch([documents(lengths)], 0), CPU)
        loss, gradients = loss_and_gradients(made, [inputs])
        found += [loss.detach(), *gradients.values()]
    return [x.clone() for x in found]


@pytest.mark.parametrize("late", [False, True])
def test_numbers_are_those_of_inputs_on_the_device(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over rows that grow and shrink, however late the copies are made."""
    monkeypatch.setattr(offload, "LATE", 1 if late else 2**27)
    passes = [[5, 9], [20, 11, 3], [6], [30]]
    copies = LateCopies()
    found = results(made_on_host(copies), passes)
    made = trained_model(0.3)
    assert install(made) is None
    made.keep([Kept.INPUT] * LAYERS)
    assert all(map(torch.equal, found, results(made, passes)))
    assert len(copies.said) > 2 * LAYERS * len(passes)


def test_each_input_is_fetched_while_the_block_above_it_goes_back() -> None:
    copies = LateCopies()
    made = made_on_host(copies)
    results(made, [[8, 8]])
    rooms = range(LAYERS)
    out, back = [f"out {n}" for n in rooms], [f"back {n}" for n in reversed(rooms)]
    assert copies.said == out + back, "each once"
    results(made, [[8, 7]])
    assert len(copies.rooms) == LAYERS, "the host's memory serves the next pass"


def test_the_next_one_is_asked_for_before_the_last_is_read() -> None:
    copies = LateCopies()
    inputs = HostInputs(copies)
    stored = [inputs.store(torch.full((4, 2), float(n))) for n in range(3)]
    x = stored[2].take()
    stored[2].ahead()
    stored[2].ahead()
    assert copies.said[-2:] == ["back 2", "back 1"] and x[0, 0] == 2
    assert stored[1].take()[0, 0] == 1 and copies.said[-1] == "back 1"
    stored[0].ahead()
    assert stored[0].take()[0, 0] == 0, "without having been asked for"


def test_an_input_is_held_until_it_was_copied_and_no_longer() -> None:
    inputs = HostInputs(LateCopies())
    first, second = torch.zeros(3, 2), torch.zeros(3, 2)
    watched = weakref.ref(first)
    stored = [inputs.store(first)]
    del first
    assert watched() is not None
    stored.append(inputs.store(second))
    assert watched() is None
    fetched = weakref.ref(stored[0].take())
    assert fetched() is None, "nor one that was taken"


def test_two_passes_may_wait_for_their_backward() -> None:
    """Each has memory of its own; that of a pass which never went back serves the next."""
    copies = LateCopies()
    inputs = HostInputs(copies)
    passes = [[inputs.store(torch.full((2, 2), float(n))) for n in range(i, i + 2)] for i in (0, 5)]
    for number, of_pass in zip((0, 5), passes, strict=True):
        for n in (1, 0):
            assert of_pass[n].take()[0, 0] == number + n
    assert len(copies.rooms) == 4
    for held in passes:
        held.clear()
    gc.collect()
    assert [inputs.store(torch.zeros(2, 2)) for _ in range(4)] and len(copies.rooms) == 4


def test_memory_too_small_is_replaced_once_nothing_is_on_its_way() -> None:
    copies = LateCopies()
    inputs = HostInputs(copies)
    for rows in (2, 5, 3):
        assert inputs.store(torch.full((rows, 2), 7.0)).take().eq(7).all()
    assert copies.said.count("finish") == 1 and len(copies.rooms) == 2


def test_what_is_on_its_way_can_be_waited_for_and_forgotten() -> None:
    """As a graph wants it: nothing comes in from what was begun before it, nothing is left."""
    copies = LateCopies()
    host = HostInputs(copies)
    stored = host.store(torch.ones(4))
    host.settle()
    assert copies.rooms[0].view(torch.float32).eq(1).all()
    host.fetch(stored)
    host.forget()
    begun = list(copies.said)
    host.settle()
    assert copies.said == begun
    assert stored.take().eq(1).all()
    del stored
    assert host.held() == copies.rooms
