"""Words of a command line that name no option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llama.errors import UserError
from llama.settings import ChatOptions, EvaluateOptions, ExportOptions, GenerateOptions
from llama.settings.options import parse
from llama.settings.options.marks import POSITIONAL


@dataclass(frozen=True, kw_only=True)
class Texts:
    texts: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """Texts."""
    top: float = 1.0
    """A number."""
    adapter: Path | None = None
    """A folder."""


def refused(cls: type, *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(cls, list(argv), "x.py", "")
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("argv", ["-n 5 hi", "hi -n 5", "-n5 hi", "hi -n", "-Hi there"])
def test_a_short_option_is_no_text(argv: str) -> None:
    words = argv.split()
    (short,) = (word for word in words if word[0] == "-")
    line = f"{short}: unknown option; --help lists those that there are; a value that begins so "
    assert refused(Texts, *words) == f"{line}stands behind --"


def test_texts_that_begin_with_a_dash() -> None:
    def texts(*argv: str) -> list[str]:
        return parse(Texts, list(argv), "x.py", "").texts

    assert texts("-", "-5", "- a point", "---") == ["-", "-5", "- a point", "---"]
    assert texts("a", "--top", "0.5", "--", "-n", "--top", "-h", "--") == [
        *("a", "-n", "--top", "-h", "--")
    ]
    assert texts("--texts", "-n", "--texts=--x") == ["-n", "--x"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of adapters, one that has not come to its adapter, one of all weights; an adapter."""
    for name in ("a", "begun", "full"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "runs" / "full" / "model").mkdir()
    for folder in ("runs/a/adapter", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("cls", [ChatOptions, EvaluateOptions, ExportOptions])
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("runs/a", "--adapter runs/a"),
        ("runs/begun", "--adapter runs/begun"),
        ("runs/full", "--model runs/full/model"),
        ("theirs", "--adapter theirs"),
    ],
)
def test_the_folder_of_a_run_or_adapter(runs: None, cls: type, word: str, meant: str) -> None:
    more = ["--output_dir", "new"] if cls is ExportOptions else []
    line = refused(cls, word, *more)
    assert line == f"unexpected argument {word!r}; did you mean {meant}?"


def test_such_a_folder_is_no_prompt(runs: None) -> None:
    assert refused(GenerateOptions, "runs/a", "hi") == (
        "'runs/a' is no text; did you mean --adapter runs/a? As a text it stands behind --"
    )
    assert parse(GenerateOptions, ["--", "runs/a"], "x.py", "").prompt == ["runs/a"]
