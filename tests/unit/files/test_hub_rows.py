"""Data sets of the Hugging Face hub by name: which files are taken, and what is said where none can
be. The hub is one of the test's own, asked by HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama.files.hub_rows import hub_name
from llama.files.hub_splits import NoChoiceError, choose
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.model_files import ROOT

ROW = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
CODE = """
import json, pathlib, sys
from llama.errors import UserError
from llama.files.shards import data_files
try:
    paths = data_files(pathlib.Path(sys.argv[1]))
    print(json.dumps([path.read_text() for path in paths]))
except UserError as error:
    print(json.dumps({"problems": error.problems}))
"""


def card(configs: object) -> str:
    return f"---\nconfigs: {json.dumps(configs)}\n---\n# About\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "home") as made:
        yield made


def asked(hub: FakeHub, name: str, **environment: str) -> tuple[object, str]:
    """What `data_files` gives for `name`, in a process of its own, and what it notes."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, name],
        env=hub.environment | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=hub.home.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def problem(hub: FakeHub, name: str, **environment: str) -> str:
    said, _ = asked(hub, name, **environment)
    assert isinstance(said, dict), said
    (line,) = said["problems"]
    assert "\n" not in line
    return line


def test_the_train_split_and_nothing_else_is_fetched(hub: FakeHub) -> None:
    hub.sets["org/rows"] = {
        "README.md": card([{"data_files": [{"split": "train", "path": "data/train-*"},
                                           {"split": "test", "path": "data/test-*"}]}]),
        "data/train-00000-of-00002.jsonl": ROW,
        "data/train-00001-of-00002.jsonl": ROW * 2,
        "data/test-00000-of-00001.jsonl": ROW * 3,
        "rows.py": "raise SystemExit('was run')",
        "model.pkl": b"\x80",
    }  # fmt: skip
    said, noted = asked(hub, "org/rows")
    assert said == [ROW, ROW * 2]
    assert sorted(set(hub.asked)) == [
        "README.md", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
    ]  # fmt: skip
    commit = hub.commit_of("org/rows")[:8]
    assert f"org/rows: at {commit}: data/train-00000-of-00002.jsonl, data/train-00001" in noted
    assert "(split train, by its card)" in noted
    assert asked(hub, "org/rows:test")[0] == [ROW * 3]


def test_a_revision(hub: FakeHub) -> None:
    hub.sets["org/rows"] = {"rows.jsonl": ROW}
    hub.sets["org/rows@refs/convert/parquet"] = {"default/train/0000.jsonl": ROW * 2}
    assert asked(hub, "org/rows")[0] == [ROW]
    assert asked(hub, "org/rows@refs/convert/parquet")[0] == [ROW * 2]
    assert "no revision 'v2'" in problem(hub, "org/rows@v2")


def test_a_path_here_wins(hub: FakeHub) -> None:
    hub.sets["org/rows"] = {"rows.jsonl": ROW}
    folder = hub.home.parent / "org" / "rows"
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text(ROW * 5)
    assert asked(hub, "org/rows")[0] == [ROW * 5]
    assert hub.asked == []


def test_the_cache_serves_where_the_hub_cannot_be_reached(hub: FakeHub) -> None:
    hub.sets["org/rows"] = {"rows.jsonl": ROW}
    assert "cannot be reached" in problem(hub, "org/rows", HF_HUB_OFFLINE="1")
    assert asked(hub, "org/rows")[0] == [ROW]
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        said, noted = asked(hub, "org/rows", **environment)
        assert said == [ROW] and "from the local cache" in noted
    assert "not do: has no split 'test'" in problem(hub, "org/rows:test", HF_HUB_OFFLINE="1")


def test_what_the_hub_does_not_give(hub: FakeHub) -> None:
    assert "no such file here, and no such data set" in problem(hub, "org/nothing")
    hub.sets["org/closed"] = {"rows.jsonl": ROW}
    hub.gated.add("org/closed")
    assert "is gated: accept its terms at https://huggingface.co/datasets/org/closed" in problem(
        hub, "org/closed"
    )
    hub.sets["org/broken"] = {"README.md": "---\nconfigs: [\n---\n", "rows.jsonl": ROW}
    assert "README.md: the YAML at its head cannot be read" in problem(hub, "org/broken")


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("org/name", True),
        ("org/name:test", True),
        ("org/name@v1.0:main/test", True),
        ("org/name@refs/convert/parquet", True),
        ("org", False),
        ("org/name/more", False),
        ("/org/name", False),
        ("../name", False),
        ("org/rows.jsonl", False),
        ("org/rows.csv.gz", False),
        ("here/name", False),
    ],
)
def test_what_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, is_name: bool
) -> None:
    """A name in a folder that is here, or one that ends as a file of rows, was meant as a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    found = hub_name(Path(text))
    assert (found is not None) == is_name
    assert found is None or str(found) == text


# fmt: off
SPLIT = [{"split": "train", "path": "a.json"}, {"split": "test", "path": ["b.json"]}]
CARD = {"configs": [{"config_name": "one", "data_files": SPLIT},
                    {"config_name": "two", "data_files": "c/**/*.json", "default": True}]}
HELD = ["a.json", "b.json", "c/d/e.json", "c/f.json.bak", ".hidden/x.json", "dataset_infos.json"]
# fmt: on


@pytest.mark.parametrize(
    ("files", "says", "wanted", "taken"),
    [
        (HELD, CARD, None, ["c/d/e.json"]),
        (HELD, CARD, "one", ["a.json"]),
        (HELD, CARD, "one/test", ["b.json"]),
        (HELD, {"configs": [{"data_files": {"train": "b.*"}}]}, None, ["b.json"]),
        (["d/train.json", "e/train.json"], {"configs": [{"data_dir": "e"}]}, None,
         ["e/train.json"]),
        (["x/a-0.json", "x/b.json"], {"configs": [{"data_dir": "x", "data_files": "a-?.json"}]},
         None, ["x/a-0.json"]),
        (["rows.csv", "notes.txt"], {}, None, ["rows.csv"]),
        (["a.jsonl", "b.jsonl"], {}, None, ["a.jsonl", "b.jsonl"]),
        (["train.json", "valid.json", "extra.json"], {}, None, ["train.json"]),
        (["train.json", "valid.json"], {}, "validation", ["valid.json"]),
        (["train.json", "dev.json"], {}, "dev", ["dev.json"]),
        (["test.json"], {}, None, ["test.json"]),
        (["data/train/0.parquet", "data/test/0.parquet"], {}, "test", ["data/test/0.parquet"]),
        (["main/train/0.parquet", "other/train/0.parquet"], {}, "main", ["main/train/0.parquet"]),
        (["main/train/0.parquet", "main/test/0.parquet"], {}, "main/test", ["main/test/0.parquet"]),
    ],
)  # fmt: skip
def test_which_files_are_taken(
    files: list[str], says: dict[str, object], wanted: str | None, taken: list[str]
) -> None:
    assert choose(files, says, wanted)[0] == taken


@pytest.mark.parametrize(
    ("files", "says", "wanted", "said"),
    [
        ([], {}, None, "holds no file of rows; it holds nothing"),
        (["rows.py", "README.md"], {}, None, "is made by a script, which is not run here"),
        (["model.bin"], {}, None, "holds no file of rows; it holds model.bin"),
        (["test.json", "valid.json"], {}, None, "has no train split but several others: test, val"),
        (["train.json"], {}, "tset", "has no split 'tset': train"),
        (["train.json", "test.json"], {}, "tset", "did you mean test?"),
        (HELD, CARD, "tow/train", "has no configuration 'tow': one, two; did you mean two?"),
        (HELD, {"configs": [{"config_name": "x", "data_files": "a.json"},
                            {"config_name": "y", "data_files": "b.json"}]}, None,
         "has several configurations: x, y; name the one that is meant after a colon"),
        (HELD, {"configs": [{"data_files": "z*"}]}, None, "its card names 'z*', and it holds no"),
        (["train.json", "train.parquet"], {}, None, "in several forms (.json, .parquet); download"),
        (["a/train.json", "b/train.json"], {}, None, "in several folders (a, b); download"),
        (["train-00001-of-00002.json"], {}, None, "shards of its split train are missing: train-0"),
    ],
)  # fmt: skip
def test_no_choice_is_one_line(
    files: list[str], says: dict[str, object], wanted: str | None, said: str
) -> None:
    with pytest.raises(NoChoiceError) as caught:
        choose(files, says, wanted)
    assert said in str(caught.value) and "\n" not in str(caught.value)
