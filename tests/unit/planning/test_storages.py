"""What is counted as living, and for how long."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama.planning.storages import LiveStorages, every_tensor

KILO = 1024


@pytest.fixture(params=[False, True], ids=["real", "fake"])
def storages(request: pytest.FixtureRequest) -> LiveStorages:
    """Entered for the length of a test, over real tensors and over fake ones."""
    found = LiveStorages()
    if request.param:
        mode = FakeTensorMode()
        mode.__enter__()
        request.addfinalizer(lambda: mode.__exit__(None, None, None))
    found.__enter__()
    request.addfinalizer(lambda: found.__exit__(None, None, None))
    return found


def kilobytes(number: int) -> torch.Tensor:
    return torch.empty(number * KILO // 4)


def test_a_storage_is_counted_until_it_is_freed(storages: LiveStorages) -> None:
    a = kilobytes(1)
    b = kilobytes(2)
    assert storages.total == 3 * KILO
    del a
    assert storages.total == 2 * KILO and storages.peak == 3 * KILO
    del b
    assert storages.total == 0 and storages.peak == 3 * KILO


def test_a_view_and_a_change_in_place_take_nothing(storages: LiveStorages) -> None:
    a = kilobytes(4)
    view = a.view(2, -1).t()[1:]
    a.add_(1.0)
    assert storages.total == 4 * KILO
    del a
    assert storages.total == 4 * KILO, "the view holds all of it"
    del view
    assert storages.total == 0


def test_what_autograd_saves_lives_until_its_backward_pass(storages: LiveStorages) -> None:
    x = kilobytes(1).requires_grad_()
    y = x.sin().exp()  # sin saves x, exp its own output
    assert storages.total == 2 * KILO
    loss = y.sum()
    del y
    assert storages.total >= 2 * KILO
    loss.backward()
    del loss
    assert storages.total == 2 * KILO, "x and its gradient"


def test_kinds_are_told_apart_at_the_peak(storages: LiveStorages) -> None:
    a = kilobytes(1)
    with storages.counting("other"):
        b = kilobytes(2)
    assert storages.at_peak == {"working": KILO, "other": 2 * KILO, "workspace": 0}
    storages.relabel(b, "third")
    storages.relabel_all("working", "fourth")
    assert {k: v for k, v in storages.live.items() if v} == {"fourth": KILO, "third": 2 * KILO}
    storages.add(a, "fifth")
    assert storages.live["fifth"] == KILO and storages.total == 3 * KILO


def test_what_is_paused_or_ignored_is_not_counted(storages: LiveStorages) -> None:
    with storages.paused():
        hidden = kilobytes(8)
    assert storages.total == 0
    storages.ignore(hidden)
    view = hidden[1:]
    assert storages.total == 0
    with storages.paused():
        told = kilobytes(8)
    storages.add({"a": [told, told]})
    assert storages.total == 8 * KILO
    del hidden, view, told
    assert storages.total == 0
    again = kilobytes(1)
    assert storages.total == again.nbytes, "a new storage at an old place is counted"


def test_a_peak_can_be_looked_for_anew(storages: LiveStorages) -> None:
    a = kilobytes(4)
    del a
    b = kilobytes(1)
    storages.forget_peak()
    assert storages.peak == KILO == b.nbytes


def test_an_operator_may_take_more_than_its_outputs() -> None:
    def workspace(func: object, args: object, kwargs: object) -> int:
        return 100 if func is torch.ops.aten.sin.default else 0

    with LiveStorages(workspace=workspace) as storages:
        y = kilobytes(1).sin()
    assert storages.peak == 2 * KILO + 100 and storages.total == y.nbytes == KILO


def test_storages_take_whole_blocks() -> None:
    with LiveStorages(whole=512) as storages:
        y = torch.empty(1)
    assert storages.total == 512 and y.nbytes == 4


def test_tensors_from_before_can_be_told_of() -> None:
    before = kilobytes(3)
    storages = LiveStorages()
    storages.add([x for x in every_tensor() if x is before])
    assert storages.total == 3 * KILO
