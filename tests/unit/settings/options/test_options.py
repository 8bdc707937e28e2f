"""The command line and the YAML file: what is accepted, and the one line said of what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from unittest import mock

import pytest

from llama.errors import UserError
from llama.settings.options import parse, run_command
from llama.settings.options.marks import BY_KEY, POSITIONAL

REPOSITORY = Path(__file__).parents[4]


@dataclass(frozen=True)
class Inner:
    rank: int = 16
    """Rank, 50% of it."""
    targets: tuple[str, ...] = ("wq", "wv")
    """Layers."""


@dataclass(frozen=True, kw_only=True)
class Base:
    tokenizer: Path | None = None
    """Where the tokenizer is."""


@dataclass(frozen=True, kw_only=True)
class Outer(Base):
    data: Path
    """The rows."""
    epochs: int = 5
    """Passes over
    the rows."""
    rate: float = 0.5
    """A rate."""
    pack: bool = True
    """Pack rows."""
    json: bool = False
    """Print JSON."""
    mode: Literal["none", "block"] = "block"
    """A mode."""
    prompt: str = ""
    """A prompt."""
    lora: Inner = field(default_factory=Inner)
    """The adapters."""
    override: list[str] = field(default_factory=list, metadata=BY_KEY)
    """A key."""
    more: list[Path] = field(default_factory=list)
    """Files."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names for names."""


def outer(*argv: str) -> Outer:
    return parse(Outer, ["--data", "rows", *argv], "prog", "What it does.")


def problems(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        outer(*argv)
    return caught.value.problems


def test_defaults():
    assert outer() == Outer(data=Path("rows"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--epochs 7", {"epochs": 7}),
        ("--epochs=7", {"epochs": 7}),
        ("--rate 1e-4", {"rate": 1e-4}),
        ("--rate -1", {"rate": -1.0}),
        ("--rate .5", {"rate": 0.5}),
        ("--pack false", {"pack": False}),
        ("--json", {"json": True}),
        ("--json --pack=False", {"json": True, "pack": False}),
        ("--mode none", {"mode": "none"}),
        ("--prompt -x", {"prompt": "-x"}),
        ("--prompt=--data", {"prompt": "--data"}),
        ("--prompt=", {"prompt": ""}),
        ("--tokenizer t", {"tokenizer": Path("t")}),
        ("--lora.rank 4", {"lora": Inner(rank=4)}),
        ("--lora.targets wq,wo", {"lora": Inner(targets=("wq", "wo"))}),
        ("--override a=1 --override b=2", {"override": ["a=1", "b=2"]}),
        ("--columns a=b,c=d", {"columns": (("a", "b"), ("c", "d"))}),
        ("--columns messages.role=x=y", {"columns": (("messages.role", "x=y"),)}),
        ("--more a --more=b", {"more": [Path("a"), Path("b")]}),
        ("--more a,b --more c", {"more": [Path("a"), Path("b"), Path("c")]}),
        ("--local_rank 0", {}),
        ("--local_rank 0 --local_rank 0", {}),
        ("--local_rank=3", {}),
    ],
)
def test_values(argv: str, expected: dict):
    assert outer(*argv.split()) == Outer(data=Path("rows"), **expected)


def test_a_path_may_hold_a_comma(tmp_path: Path):
    (tmp_path / "a,b").touch()
    assert outer("--more", f"{tmp_path}/a,b").more == [tmp_path / "a,b"]
    assert problems("--more", "a,,b") == ["--more: expected a path, found ''"]


@dataclass(frozen=True, kw_only=True)
class Positional:
    runs: list[Path] = field(metadata=POSITIONAL)
    """Folders."""
    output: Path | None = None
    """A file."""
    json: bool = False
    """Whether."""


@pytest.mark.parametrize(
    "argv",
    ["a b --json", "--json a b", "--runs a b --json true", "--runs a,b --json", "a --json b"],
)
def test_a_positional_option_may_stand_without_its_name(argv: str):
    parsed = parse(Positional, argv.split(), "x.py", "")
    assert parsed == Positional(runs=[Path("a"), Path("b")], json=True)


def test_a_positional_option_is_required_and_shown_as_such(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"--runs: required, and not given: x.py RUNS\.\.\.$"):
        parse(Positional, ["--output", "x"], "x.py", "")
    with pytest.raises(SystemExit):
        parse(Positional, ["--help"], "x.py", "")
    assert "usage: x.py RUNS... [options]" in capsys.readouterr().out


def test_a_value_may_begin_with_dashes_that_name_no_option():
    assert outer("--prompt", "--- a rule").prompt == "--- a rule"
    assert outer("--prompt", "-- and so on").prompt == "-- and so on"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--epoch 7", "--epoch: unknown option; did you mean --epochs?"),
        ("--epoch=7", "--epoch: unknown option; did you mean --epochs?"),
        ("--epo 7", "--epo: unknown option; did you mean --epochs?"),
        ("--lora_rnk 7", "--lora_rnk: unknown option; did you mean --lora.rank?"),
        ("--zzzzzzzz", "--zzzzzzzz: unknown option"),
        ("--epochs 1 --epochs 2", "--epochs: given twice; keep one"),
        ("--epochs 1 --epochs=1", "--epochs: given twice; keep one"),
        ("--json --json", "--json: given twice; keep one"),
        ("--lora.targets wq --lora.targets wv", "--lora.targets: given twice; keep one"),
        ("--data more", "--data: given twice; keep one"),
        ("stray", "unexpected argument 'stray'"),
        ("--json stray", "unexpected argument 'stray'"),
        ("-e", "-e: unknown option; --help lists those that there are"),
        ("-e 5", "-e: unknown option"),
        ("-- -e", "unexpected argument '-e'"),
        ("--epochs", "--epochs: its value is missing"),
        ("--epochs --json", "--epochs: its value is missing"),
        ("--epochs five", "--epochs: expected an integer, found 'five'"),
        ("--epochs 1.5", "--epochs: expected an integer, found '1.5'"),
        ("--epochs 1_0", "--epochs: expected an integer, found '1_0'"),
        ("--epochs ٣", "--epochs: expected an integer, found '٣'"),
        ("--epochs " + "9" * 5000, "--epochs: expected an integer"),
        ("--rate nan", "--rate: expected a finite number, found 'nan'"),
        ("--rate inf", "--rate: expected a finite number, found 'inf'"),
        ("--rate 1e999", "--rate: expected a finite number, found '1e999'"),
        ("--pack=yes", "--pack: expected true or false, found 'yes'"),
        ("--mode blok", "expected one of none, block, found 'blok'; did you mean block?"),
        ("--tokenizer=", "--tokenizer: expected a path, found ''"),
        ("--columns a", "--columns: expected NEW=OLD, as output=answer, found 'a'"),
        ("--columns a=", "--columns: expected NEW=OLD, as output=answer, found 'a='"),
        ("--columns a=b,a=c", "--columns: a is given twice; keep one"),
        ("--columns a=b --columns c=d", "--columns: given twice; keep one"),
        ("--lora.targets wq,,wv", "--lora.targets: expected names joined by commas"),
    ],
)
def test_a_wrong_argument_is_one_line(argv: str, line: str):
    (found,) = problems(*argv.split())
    assert line in found


def test_all_problems_come_at_once():
    with pytest.raises(UserError) as caught:
        parse(Outer, ["--epochs", "x", "--nope", "--mode", "y"], "prog", "")
    found = caught.value.problems
    assert len(found) == 4
    assert any("--data: required" in line for line in found)


def test_yaml_nested_dotted_and_overridden(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: 007\nepochs: 3\nrate: 1e-4\npack: false\nprompt: no\ntokenizer: null\n"
        "lora:\n  rank: 8\nlora.targets: [wk, wo]\noverride: [a=1, b=2]\nmore: [a, b]\n"
    )
    found = parse(Outer, ["--config", str(file), "--epochs", "9"], "prog", "")
    assert found == Outer(
        data=Path("007"),
        epochs=9,
        rate=1e-4,
        pack=False,
        prompt="no",
        lora=Inner(8, ("wk", "wo")),
        override=["a=1", "b=2"],
        more=[Path("a"), Path("b")],
    )
    file.write_text("data: rows\nmore: null\n")
    assert parse(Outer, ["--config", str(file)], "prog", "") == Outer(data=Path("rows"))
    file.write_text("data: rows\nmore: [a, b]\n")
    found = parse(Outer, ["--config", str(file), "--more", "c"], "prog", "")
    assert found.more == [Path("c")], "the command line's list takes the place of the file's"


@pytest.mark.parametrize(
    ("listed", "typed", "expected"),
    [
        ("[a=1, b=2]", ["c=3"], ["a=1", "b=2", "c=3"]),
        ("[a=1, b=2]", ["a=3"], ["b=2", "a=3"]),
        ("[a.b=1]", ["a={}"], ["a.b=1", "a={}"]),
        ("a=1", ["b=2"], ["a=1", "b=2"]),
        ("null", ["b=2"], ["b=2"]),
    ],
)
def test_settings_of_a_file_are_kept_beside_those_of_the_command_line(
    tmp_path: Path, listed: str, typed: list[str], expected: list[str]
):
    (tmp_path / "run.yaml").write_text(f"override: {listed}\n")
    words = [word for setting in typed for word in ("--override", setting)]
    assert outer("--config", str(tmp_path / "run.yaml"), *words).override == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epoch: 1", "line 1: epoch: unknown option; did you mean epochs?"),
        ("epochs: 1\nlora:\n  rnak: 1", "line 3: lora.rnak: unknown option; did you mean lora.r"),
        ("epochs: 1\nepochs: 2", "line 2: epochs: given twice"),
        ("lora: {rank: 1}\nlora: {}", "line 2: lora: given twice"),
        ("lora: {rank: 1}\nlora.rank: 2", "line 2: lora.rank: given twice"),
        ("epochs: x", "line 1: epochs: expected an integer, found 'x'"),
        ("epochs:", "line 1: epochs: expected a value, found nothing"),
        ("epochs: [1, 2]", "line 1: epochs: expected one value, found a list of 2"),
        ("epochs: {a: 1}", "line 1: epochs.a: unknown option"),
        ("override: [[a]]", "line 1: override: expected a value or a list of values"),
        ("- epochs", "line 1: expected a mapping"),
        ("epochs", "line 1: expected a mapping"),
        ("epochs: [", "not YAML"),
        ("a: &a [*a]", "unknown option"),
        ("lora: &a {rank: 1}\nmode: *a", "anchors and aliases are not supported"),
        ("? [a]\n: 1", "expected the name of an option as key"),
        ("config: other.yaml", "config: unknown option"),
        ("--- {}\n--- {}", "not YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_wrong_yaml_is_one_line(tmp_path: Path, text: str, line: str):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    (found,) = problems("--config", str(file))
    assert found.startswith(f"{file}: ")
    assert line in found


def test_a_yaml_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "run.yaml").write_bytes(b"epochs: 1\ndata: \xff\n")
    assert problems("--config", str(tmp_path / "run.yaml")) == [
        f"{tmp_path}/run.yaml: line 2: not UTF-8 text"
    ]
    (line,) = problems("--config", str(tmp_path / "rum.yaml"))
    assert line.endswith(f"does not exist; did you mean {tmp_path}/run.yaml?")
    (line,) = problems("--config", str(tmp_path))
    assert "is a folder" in line


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        outer("--help", "--nonsense")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for shown in (
        "What it does.",
        "--data PATH The rows. (required)",
        "--epochs N Passes over the rows. (default: 5)",
        "--pack true|false Pack rows. (default: true)",
        "--json true|false Print JSON. (default: false)",
        "--mode {none,block} A mode. (default: block)",
        "--lora.rank N Rank, 50% of it. (default: 16)",
        "--lora.targets NAME,NAME Layers. (default: wq,wv)",
        "--tokenizer PATH Where the tokenizer is. (default: none)",
        "--config FILE.yaml",
    ):
        assert shown in text


class TestRunCommand:
    def run(self, run, *argv: str) -> int:
        return run_command(run, Outer, "prog", "", list(argv))

    def test_status(self):
        assert self.run(lambda options: None, "--data", "x") == 0
        assert self.run(lambda options: 3, "--data", "x") == 3

    def test_a_users_mistake(self, capsys: pytest.CaptureFixture[str]):
        def refuse(options: Outer) -> None:
            raise UserError(["one", "two"])

        assert self.run(refuse, "--data", "x") == 2
        assert capsys.readouterr() == ("", "error: one\nerror: two\n")

    def test_the_first_rank_speaks_first(self, capsys, monkeypatch: pytest.MonkeyPatch):
        """A launcher ends the other ranks once one has ended, so those wait before they speak."""
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, waits in (("0", 0), ("1", 1)):
            monkeypatch.setenv("RANK", rank)
            assert self.run(lambda options: None) == 2
            assert len(waited) == waits
            assert "--data" in capsys.readouterr().err

    @pytest.mark.parametrize("error", [RuntimeError, BrokenPipeError])
    def test_other_failures_pass_through(self, error: type[Exception]):
        def fail(options: Outer) -> None:
            raise error

        with pytest.raises(error):
            self.run(fail, "--data", "x")

    @pytest.mark.parametrize(("text", "at"), [("caf\udce9", 3), ("\u6f22\udce9", 3), ("\ud800", 0)])
    @pytest.mark.parametrize("name", ["data", "prompt", "override"])
    def test_what_is_no_text(self, name: str, text: str, at: int, capsys):
        """Python keeps bytes of the command line that are not UTF-8 as halves of pairs."""
        given = {"data": "x"} | {name: text}
        words = [word for option, value in given.items() for word in (f"--{option}", value)]
        assert self.run(lambda options: None, *words) == 2
        err = capsys.readouterr().err
        assert err == f"error: --{name}: not UTF-8 at byte {at}: {text!a}; give it in UTF-8\n"

    def test_a_rank_of_any_launcher_waits(self, capsys, monkeypatch: pytest.MonkeyPatch):
        """srun and mpirun have names of their own for RANK."""
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        for name, text in (("RANK", "1"), ("SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_SIZE", "2")):
            monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", text)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name, raising=False)
        with mock.patch.dict(os.environ):
            assert self.run(lambda options: None) == 2
            with pytest.raises(SystemExit):
                self.run(lambda options: None, "--help")
        assert waited and capsys.readouterr().out == ""

    def test_interrupt(self):
        def interrupt(options: Outer) -> None:
            raise KeyboardInterrupt

        assert self.run(interrupt, "--data", "x") == 130

    def test_a_reader_that_has_gone_is_quiet(self):
        script = (
            "import sys; from llama.settings.options import run_command;"
            "from tests.unit.settings.options.test_options import Outer;"
            "from llama.launch.program import run_program; run = lambda o: print('x' * 10**6);"
            "run_program(run_command, run, Outer, 'p', '', ['--data', 'x'])"
        )
        command = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        assert command.stdout is not None and command.stderr is not None
        command.stdout.read(1)
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait() == 1


def test_parsing_imports_neither_torch_nor_deepspeed():
    script = (
        "import sys, llama.settings.options, llama.settings, llama.settings.deepspeed_json;"
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY).returncode == 0
