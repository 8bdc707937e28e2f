"""One file written as one; folders are in tests/unit/checkpoint, which writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llama.files.atomic import write_file


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
