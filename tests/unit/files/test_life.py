"""Work on files that may take long shows signs of life as it goes, a chunk at a time: however long
a save takes, the rank is not taken for hung, and one whose save stands still is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama.checkpoint.manifest import check_listed
from llama.engine.parts import checksum
from llama.files import life, new_file
from llama.files.atomic import link_folder, write_folder
from llama.files.new_file import NewFile
from llama.files.safetensors import HashedTensorFile


@pytest.fixture
def signs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each that was shown."""
    shown: list[int] = []
    monkeypatch.setattr(life, "show", lambda: shown.append(1))
    monkeypatch.setattr(new_file, "_CHUNK", 16)
    monkeypatch.setattr("llama.checkpoint.manifest._CHUNK", 16)
    monkeypatch.setattr("llama.engine.parts._CHUNK", 16)
    return shown


def _save_tensors(folder: Path) -> None:
    file = HashedTensorFile(folder / "a.safetensors", [("a", torch.float32, (80,))])
    file.add("a", torch.zeros(80))
    file.finish()
    written = vars(file.written())
    check_listed(folder, "a.safetensors", written)


WORK: dict[str, tuple[Callable[[Path], object], int]] = {
    "tensors, written and read back": (_save_tensors, 2 * 320 // 16),
    "files": (lambda folder: write_folder(folder / "a", {"b": b"x" * 320}), 320 // 16),
    "a checksum": (lambda _: checksum(torch.zeros(320)), 320 // 16),
    "a second name": (lambda folder: link_folder(_of_files(folder, 20), folder / "two"), 20),
}


def _of_files(folder: Path, count: int) -> Path:
    (made := folder / "one").mkdir()
    for number in range(count):
        (made / str(number)).write_text("")
    return made


@pytest.mark.parametrize("what", WORK)
def test_long_work_shows_life_as_it_goes(what: str, tmp_path: Path, signs: list[int]) -> None:
    work, least = WORK[what]
    work(tmp_path)
    assert len(signs) >= least


def test_a_large_file_goes_to_the_disk_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the disk at the end is little, whatever the file's size."""
    monkeypatch.setattr(new_file, "_CHUNK", 16)
    monkeypatch.setattr(new_file, "_UNSYNCED", 64)
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    file = NewFile(tmp_path / "a")
    for _ in range(10):
        file.write(b"x" * 24)
    file.finish()
    assert (tmp_path / "a").read_bytes() == b"x" * 240
    assert sizes[-1] == 240 and max(b - a for a, b in zip([0, *sizes], sizes, strict=False)) <= 80


def test_silence_is_counted_from_the_last_sign_and_not_while_it_is_excused() -> None:
    life.show()
    life.was_stopped(-100)
    assert life.silence() >= 100
    with life.excused():
        assert life.silence() == 0
    assert life.silence() < 100
    life.was_stopped(-100)
    life.show()
    assert life.silence() < 100


def test_a_pause_is_no_silence_and_no_credit() -> None:
    """Another thread may show a sign before it is known how long all of them stood still."""
    life.show()
    life.was_stopped(3600.0)
    assert 0.0 <= life.silence() < 60.0
