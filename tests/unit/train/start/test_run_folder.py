"""The folder of a run is one run's alone: its name, and its lock."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from llama.errors import UserError
from llama.parallel.mesh import SINGLE, Mesh
from llama.train.start.folder import make_folder, require_room
from llama.train.start.resume import RECORD, Resumer

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def resumer(folder: Path | None, resume: str = "auto", meanwhile: Path | None = None) -> Resumer:
    """One that has no model; another process begins a run in `meanwhile` while it reads inputs."""
    given = {"model": "random:tiny", "init_adapter": None, "tokenizer": None}
    options = mock.Mock(output_dir=folder, resume=resume, **given)
    inputs = mock.Mock(options=options)
    inputs.method.RESULT, inputs.method.LAST = "adapter", "adapter_last"
    inputs.source.config.parameter_count.return_value = 1

    def read(*_: object) -> dict[str, str]:
        if meanwhile is not None:
            meanwhile.mkdir()
            (meanwhile / RECORD).write_text("{}")
        return {}

    with (
        mock.patch("llama.train.start.resume.identity", read),
        mock.patch("llama.train.start.resume.topology"),
        mock.patch.object(Resumer, "_to_write", lambda *_: 0),
        mock.patch.object(Resumer, "_most", lambda *_: 0),
    ):
        return Resumer(inputs, mock.Mock(), ALONE, torch.device("cpu"))


def test_each_of_many_finds_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(make_folder, [None] * 64))
    assert len(set(folders)) == 64 and Path("runs/now") in folders
    assert all(folder.is_dir() for folder in folders)


def test_a_name_that_is_there_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it a run that came to its end within the second."""
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    first, second = resumer(None), resumer(None)
    assert first.start.folder == Path("runs/now") and second.start.folder == Path("runs/now-2")
    assert (second.start.folder / ".lock").exists()
    first.close()
    second.close()


def test_one_folder_holds_one_process() -> None:
    first = resumer(Path("out"))
    with pytest.raises(UserError, match="out is being written by another process"):
        resumer(Path("out"))
    first.close()
    resumer(Path("out")).close()


def test_a_run_that_began_meanwhile_is_not_begun_anew() -> None:
    late = resumer(Path("out"), meanwhile=Path("out"))
    assert "out holds a run" in late.start.notes[0]
    late.close()


def test_never_means_never() -> None:
    with pytest.raises(UserError, match="--resume never: out holds a run by now"):
        resumer(Path("out"), "never", meanwhile=Path("out"))
    resumer(Path("out")).close()  # the refused one has let go of it


def test_where_no_folder_can_be_made() -> None:
    Path("runs").write_text("")
    with pytest.raises(UserError, match="--output_dir: runs cannot be made: File exists"):
        resumer(None)
    Path("out/.lock").mkdir(parents=True)
    with pytest.raises(UserError, match="--output_dir: out cannot be written in: Is a directory"):
        resumer(Path("out"))


def test_a_file_system_without_files_to_give() -> None:
    """It has bytes and no inodes. One that counts none, as btrfs, is no problem."""
    for total, free, refused in ((1000, 3, True), (1000, 900, False), (0, 0, False)):
        system = SimpleNamespace(f_files=total, f_favail=free)
        usage = SimpleNamespace(total=1 << 40, used=0, free=1 << 40)
        with (
            mock.patch.object(os, "statvfs", lambda _, found=system: found),
            mock.patch("shutil.disk_usage", lambda _, found=usage: found),
        ):
            if refused:
                with pytest.raises(UserError, match=r"out has room for 3 more files \(inodes\)"):
                    require_room(Path("out"), Path("out/checkpoints"), 0, "")
            else:
                require_room(Path("out"), Path("out/checkpoints"), 0, "")
    assert not Path("out").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EACCES])
def test_what_the_system_says_of_a_folder_is_one_line(code: int) -> None:
    """Read-only, over quota, full, not ours: met by writing, before anything loads."""
    error = OSError(code, os.strerror(code))
    with (
        mock.patch.object(tempfile, "TemporaryFile", side_effect=error),
        pytest.raises(UserError) as caught,
    ):
        require_room(Path("out"), Path("out/checkpoints"), 0, "")
    (line,) = caught.value.problems
    assert os.strerror(code) in line and "give another folder" in line
