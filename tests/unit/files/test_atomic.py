"""One file or folder written as one; tests/unit/checkpoint has the folders that matter most."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.files.atomic import (
    link_folder,
    remove_folder,
    remove_leftovers,
    write_file,
    write_folder,
)
from tests.support.failing_calls import killed_at, operations


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    (tmp_path / ".run.json.partial").write_text("of a killed run, and longer than what follows")
    for content in (b"first", b"second", b""):
        write_file(path, content)
        assert path.read_bytes() == content and os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run.json"
    write_file(path, b"earlier")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_file(path, b"later")
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["run.json"]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)

        def noted(*args: Any, name: str = name, call: Any = call) -> Any:
            done.append(name)
            return call(*args)

        monkeypatch.setattr(os, name, noted)
    write_file(tmp_path / "run.json", b"content")
    assert done == ["fsync", "replace", "fsync"], "the content, its name, the folder that has it"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_that_cannot_take_its_name_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "adapter", os.rename
    write_folder(folder, {"a": b"earlier"})

    def refused(source: Path, target: Path) -> None:
        if Path(source).name == ".adapter.partial":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(folder, {"a": b"later"})
    assert content(folder) == {"a": b"earlier"} and os.listdir(tmp_path) == ["adapter"]


EARLIER, LATER = {"a": b"earlier", "b": b"1"}, {"a": b"later", "c": b"22"}


def link_later(folder: Path) -> None:
    source = folder.parent.parent / "source"
    if not source.exists():
        write_folder(source, LATER)
    link_folder(source, folder)


@pytest.mark.parametrize(
    "replaced", [lambda folder: write_folder(folder, LATER), link_later], ids=["written", "linked"]
)
def test_a_kill_at_every_operation_leaves_one_of_the_two(
    tmp_path: Path, replaced: Callable[[Path], None]
) -> None:
    """And nothing else, once the next start has tidied up."""
    earlier, later = EARLIER, LATER
    replaced(tmp_path / "first" / "adapter")

    def made(index: int) -> Path:
        write_folder(folder := tmp_path / str(index) / "adapter", earlier)
        return folder

    count = operations(lambda: replaced(made(-1)))
    found = []
    for index in range(count - operations(lambda: made(-2))):
        folder = made(index)
        killed_at(index, lambda folder=folder: replaced(folder))
        remove_leftovers(folder.parent, lambda name: name == "adapter")
        assert os.listdir(folder.parent) == ["adapter"]
        assert content(folder) in (earlier, later)
        found.append(content(folder) == later)
    assert {*found} == {False, True} and found == sorted(found), "first the one, then the other"


def test_a_removal_that_was_killed_is_ended(tmp_path: Path) -> None:
    """A folder of which a part may be gone is not put back."""

    def made(index: int) -> Path:
        write_folder(folder := tmp_path / str(index) / "adapter", {"a": b"1", "b": b"2"})
        return folder

    whole = made(-1)
    left = []
    for index in range(operations(lambda: remove_folder(whole))):
        folder = made(index)
        killed_at(index, lambda folder=folder: remove_folder(folder))
        remove_leftovers(folder.parent, lambda name: name == "adapter")
        left.append(os.listdir(folder.parent))
        assert left[-1] in (["adapter"], []) and (not left[-1] or len(content(folder)) == 2)
    assert left[0] == ["adapter"] and left[-1] == []


@pytest.mark.parametrize("refused", [False, True], ids=["linked", "copied"])
def test_a_folder_is_another_under_a_second_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Replaced as one, by links or, where the file system has none, by copies; removing the one
    leaves the other whole."""
    source, folder = tmp_path / "best" / "step-3", tmp_path / "adapter"
    write_folder(source, {"a": b"1", "inner/b": b"2"})
    write_folder(folder, {"a": b"earlier", "c": b"3"})
    if refused:

        def no_links(*_: Any) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", no_links)
    link_folder(source, folder)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        *("a", "inner", "inner/b"),
    ]
    assert (folder / "a").samefile(source / "a") != refused
    remove_folder(source)
    assert (folder / "a").read_bytes() == b"1" and (folder / "inner" / "b").read_bytes() == b"2"
    assert sorted(os.listdir(tmp_path)) == ["adapter", "best"]


def test_a_folder_that_cannot_be_linked_nor_copied_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "source", tmp_path / "adapter"
    write_folder(source, {"a": b"later"})
    write_folder(folder, {"a": b"earlier"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        link_folder(source, folder)
    assert content(folder) == {"a": b"earlier"}
    assert sorted(os.listdir(tmp_path)) == ["adapter", "source"]
