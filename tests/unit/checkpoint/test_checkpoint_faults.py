"""A save that fails, or is killed, at each of its file operations in turn: there is always a valid
checkpoint, and it is the old one or the new one. The disk's own writes are real; what fails is the
call, as the kernel would fail it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from llama.checkpoint import Store, Writer
from llama.errors import TrainingError
from tests.support.failing_calls import At, before_each_call, killed_at
from tests.support.failing_calls import operations as operations_of
from tests.unit.checkpoint.checkpoint_case import ADAPTER, MOST, checkpoint, same


def store_of(folder: Path, *steps: int) -> Store:
    store = Store(folder)
    for step in steps:
        store.save(checkpoint(step), ADAPTER, keep=2)
    return store


def operations(folder: Path) -> int:
    """How many a save makes, the removal of an older checkpoint included."""
    store = store_of(folder, 1, 2)
    count = operations_of(lambda: store.save(checkpoint(3), ADAPTER, keep=2))
    assert store.steps() == [3, 2]
    return count


def check_one_is_valid(store: Store) -> int:
    """And that the next run of the folder goes on from there: leftovers are gone, saving works."""
    found, refused = store.newest(MOST)
    assert found is not None and not refused
    assert found.step in (2, 3) and same(found, checkpoint(found.step))
    store.tidy()
    store.save(checkpoint(3), ADAPTER, keep=2)
    names = {path.name for path in store.folder.iterdir()}
    assert {"step-3", "step-2"} <= names <= {"step-1", "step-2", "step-3"}
    assert same(store.newest(MOST)[0], checkpoint(3))  # type: ignore[arg-type]
    return found.step


def test_an_error_at_every_operation(tmp_path: Path) -> None:
    count = operations(tmp_path / "counted")
    assert count > 30
    reached = set()
    for index in range(count):
        store = store_of(tmp_path / str(index), 1, 2)

        def fail() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with before_each_call(At(index, fail)):
            try:
                store.save(checkpoint(3), ADAPTER, keep=2)
            except TrainingError as error:
                assert "No space left on device" in str(error)
        reached.add(check_one_is_valid(store))
    assert reached == {2, 3}


def test_sigkill_at_every_operation(tmp_path: Path) -> None:
    """In a process of its own, that ends there and then."""
    reached = set()
    for index in range(operations(tmp_path / "counted")):
        store = store_of(tmp_path / str(index), 1, 2)
        killed_at(index, lambda store=store: store.save(checkpoint(3), ADAPTER, keep=2))
        reached.add(check_one_is_valid(store))
    assert reached == {2, 3}


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel's own refusal: each file of the checkpoint in turn is over the limit."""
    store = store_of(tmp_path, 1, 2)
    sizes = sorted(path.stat().st_size for path in store.path(2).rglob("*") if path.is_file())
    for size in sizes:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 8, size - 8))
            try:
                store.save(checkpoint(3), ADAPTER, keep=2)
            except TrainingError as error:
                os._exit(42 if "File too large" in str(error) else 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert store.steps() == [2, 1] and len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_that_is_written_again(tmp_path: Path) -> None:
    """Over one of the same step that was refused."""
    store = store_of(tmp_path, 2, 3)
    (store.path(3) / "trainer.json").write_text("{}")
    store.save(checkpoint(3), ADAPTER, keep=2)
    assert same(store.newest(MOST)[0], checkpoint(3))  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"step-2", "step-3"}


def test_sigkill_at_every_operation_of_a_replacement(tmp_path: Path) -> None:
    """The only checkpoint is written anew: it is the earlier or the later, and never gone."""
    earlier, later = checkpoint(3, seed=1), checkpoint(3, seed=2)
    before = []
    count = 1
    while len(before) < count:
        store = Store(tmp_path / str(len(before)))
        store.save(earlier, ADAPTER, keep=2)

        def save(store: Store = store) -> None:
            store.save(later, ADAPTER, keep=2)

        if count == 1:
            count = operations_of(save)
            store.save(earlier, ADAPTER, keep=2)
        killed_at(len(before), save)
        store.tidy()
        found, refused = store.newest(MOST)
        assert found is not None and not refused and os.listdir(store.folder) == ["step-3"]
        assert same(found, earlier) or same(found, later)
        before.append(same(found, earlier))
    assert count > 30 and {*before} == {True, False}


@pytest.mark.parametrize("name", [".step-9.partial", ".step-1.gone", ".step-2.old"])
def test_leftovers_are_removed(name: str, tmp_path: Path) -> None:
    store = store_of(tmp_path, 2)
    (tmp_path / name / "adapter").mkdir(parents=True)
    store.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_what_goes_wrong_in_the_thread_is_raised(tmp_path: Path) -> None:
    """By the next save and by `wait`; and `first` comes before anything is written."""
    store = store_of(tmp_path / "checkpoints", 2)
    writer, order = Writer(store, ADAPTER, keep=2), []
    writer.save(checkpoint(3), lambda: order.append(store.steps()))
    writer.wait()
    assert order == [[2]] and store.steps() == [3, 2]

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer.save(checkpoint(4), fail)
    with pytest.raises(OSError, match="Input/output error"):
        writer.save(checkpoint(5), lambda: None)
    with pytest.raises(OSError, match="Input/output error"):
        writer.wait()
    assert store.steps() == [3, 2]
