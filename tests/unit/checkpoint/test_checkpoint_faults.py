"""A save that fails, or is killed, at each of its file operations in turn: there is always a valid
checkpoint, and it is the old one or the new one. The disk's own writes are real; what fails is the
call, as the kernel would fail it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama.checkpoint import Store, Writer
from llama.errors import TrainingError
from tests.unit.checkpoint.checkpoint_case import ADAPTER, MOST, checkpoint, same

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
"""Of `os`, all by which a save can change the disk; `shutil` goes through them too."""


@contextmanager
def before_each_call(act: Callable[[], None]) -> Iterator[None]:
    real = {name: getattr(os, name) for name in CALLS}

    def acting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            act()
            return real[name](*args, **kwargs)

        return call

    try:
        for name in CALLS:
            setattr(os, name, acting(name))
        yield
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


class At:
    """Calls `what` at the `index`th operation, counted from 0."""

    def __init__(self, index: int, what: Callable[[], None]) -> None:
        self.index, self.what, self.count = index, what, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.index + 1:
            self.what()


def store_of(folder: Path, *steps: int) -> Store:
    store = Store(folder)
    for step in steps:
        store.save(checkpoint(step), ADAPTER, keep=2)
    return store


def operations(folder: Path) -> int:
    """How many a save makes, the removal of an older checkpoint included."""
    store, counter = store_of(folder, 1, 2), At(-1, lambda: None)
    with before_each_call(counter):
        store.save(checkpoint(3), ADAPTER, keep=2)
    assert store.steps() == [3, 2]
    return counter.count


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
        child = os.fork()
        if child == 0:
            with before_each_call(At(index, lambda: os.kill(os.getpid(), signal.SIGKILL))):
                store.save(checkpoint(3), ADAPTER, keep=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
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


@pytest.mark.parametrize("name", [".step-9.partial", ".step-1.old"])
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
