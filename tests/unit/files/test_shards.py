"""Data in several files: folders of shards are read whole, in order, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import UserError
from llama.files.shards import data_files, data_problems


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def names(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in data_files(folder)]


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (("b.jsonl", "a.jsonl", "README.md"), ["a.jsonl", "b.jsonl"]),
        (
            ("train-00001-of-00002.parquet", "train-00000-of-00002.parquet", ".gitattributes"),
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ),
        (("x-1-of-2.json", "x-2-of-2.json"), ["x-1-of-2.json", "x-2-of-2.json"]),
        (("data/a.parquet", "README.md"), ["data/a.parquet"]),
        (("data-00000-of-00001.arrow", "state.json", "dataset_info.json"),
         ["data-00000-of-00001.arrow"]),
        (("a.json", "_cache/b.json", ".git/c.json", "_d.json"), ["a.json"]),
        (("a.jsonl.gz", "b.JSONL"), ["a.jsonl.gz", "b.JSONL"]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path: Path, there: tuple[str, ...], read: list[str]) -> None:
    assert names(fill(tmp_path, *there)) == read


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "holds no data file; their names end in .json"),
        (("notes.txt",), "holds no data file among its 1 files"),
        (("train-00000-of-00002.parquet",), "are missing: train-00001-of-00002.parquet; download"),
        (("x-00001-of-00003.csv",), "are missing: x-00000-of-00003.csv, x-00002-of-00003.csv"),
        (("x-00000-of-99999.jsonl",), "and 99994 more"),
        (
            ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
            "holds several splits (test, train); give the files of the one that is meant, as",
        ),
        (("train.jsonl", "dev.jsonl"), "holds several splits (train, validation)"),
        (("train/a.json", "test/a.json"), "holds data in several folders"),
        (("config.json", "model.safetensors", "tokenizer.json"), "holds a model (config.json)"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, there: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        data_files(fill(tmp_path / "set", *there) if there else tmp_path)
    (line,) = caught.value.problems
    assert line.startswith(str(tmp_path)) and said in line


def test_a_split_in_a_folder_of_its_own_is_one_set(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.json", "test/a.json")
    assert names(tmp_path / "train") == ["a.json"]


def test_problems_name_the_option(tmp_path: Path) -> None:
    fill(tmp_path, "set/a.json", "b.json")
    paths = [tmp_path / "set", tmp_path / "b.json"]
    assert data_problems("data", paths) == []
    (twice,) = data_problems("data", [*paths, tmp_path / "set/../b.json"])
    assert twice == f"--data: {tmp_path}/set/../b.json is given twice"
    (absent,) = data_problems("eval_data", [tmp_path / "c.json"])
    assert absent.startswith(f"--eval_data: {tmp_path}/c.json does not exist")
    (empty,) = data_problems("data", [fill(tmp_path / "none", "x.txt")])
    assert empty.startswith(f"--data: {tmp_path}/none: holds no data file")
