"""What a user may get wrong: each problem one line, status 2, nothing written, no weights read.

The cases are in `cases/`; `docs/bad_inputs.md` has the lines whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_inputs.setting import COMMANDS, Case, Setting, build, run
from tests.bad_inputs.table import AREAS, PAGE, committed, page

UNLOADED = ("data", "doctor", "plan", "report", "combine", "export")
"""Commands that load no model."""
ALL = [(area, case) for area, cases in AREAS.items() for case in cases]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bad_inputs") / "sound")


@pytest.mark.parametrize(("area", "case"), ALL, ids=[f"{area}: {case.name}" for area, case in ALL])
def test_it_is_refused(area: str, case: Case, sound: Path, tmp_path: Path) -> None:
    outcome = run(case, sound, tmp_path / "case")
    assert outcome.status == 2 and outcome.stdout == "" and not outcome.changed
    assert outcome.lines == committed()[area][case.name]
    assert len(outcome.lines) == len(case.says), outcome.lines
    for line, piece in zip(outcome.lines, case.says, strict=True):
        assert piece and piece in line


def test_a_sound_plan_is_made(sound: Path, tmp_path: Path) -> None:
    """It loads no weights."""
    outcome = run(
        Case("", lambda s: s.options.update(seq_len="64"), (), "plan"), sound, tmp_path / "run"
    )
    assert outcome.status == 0 and "it fits" in outcome.stdout and not outcome.changed


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {*UNLOADED}))
def test_what_is_spoilt_was_sound(command: str, sound: Path, tmp_path: Path) -> None:
    """Else every refusal might be of something else: unspoilt, each command goes on to weights."""
    with pytest.raises(AssertionError, match="weights are being loaded"):
        run(Case("sound", lambda setting: None, (), command), sound, tmp_path / "case")


@pytest.mark.parametrize("command", ["combine", "export"])
def test_what_is_written_anew_was_sound(command: str, sound: Path, tmp_path: Path) -> None:
    """They read tensors one at a time and load no model."""

    def given(setting: Setting) -> None:
        if command == "combine":
            setting.more += ["adapter:0.5", "adapter:0.5"]

    outcome = run(Case("sound", given, (), command), sound, tmp_path / "case")
    assert outcome.status == 0 and outcome.changed, outcome.lines


def test_so_was_the_run_of_a_report(sound: Path, tmp_path: Path) -> None:
    outcome = run(Case("sound", lambda setting: None, (), "report"), sound, tmp_path / "case")
    assert (outcome.status, outcome.lines) == (0, [])
    assert outcome.changed == {"finished/report.html"}


@pytest.mark.parametrize("model", ["meta", "model.gguf"])
def test_so_were_the_other_formats(model: str, sound: Path, tmp_path: Path) -> None:
    def other(setting: Setting) -> None:
        setting.options |= {"model": model, "tokenizer": "model/tokenizer.json"}

    with pytest.raises(AssertionError, match="weights are being loaded"):
        run(Case("sound", other, ()), sound, tmp_path / "case")


def test_the_page_is_what_the_command_writes() -> None:
    """Every line of it is held to what is printed by the test above."""
    assert page(committed()) == PAGE.read_text(encoding="utf-8")
    assert {area: list(cases) for area, cases in committed().items()} == {
        area: [case.name for case in cases] for area, cases in AREAS.items()
    }


def test_there_are_enough() -> None:
    names = [(area, case.name) for area, case in ALL]
    assert len(names) == len(set(names)) >= 80
