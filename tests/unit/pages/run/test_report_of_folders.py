"""Which folders a page is made of, and which file it may be written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.commands import report as command
from llama.errors import UserError
from llama.pages.run.report import report
from llama.settings import ReportOptions
from tests.unit.pages.run.test_report import documents, write


def test_what_is_no_run_is_refused_all_at_once(tmp_path: Path) -> None:
    run = write(tmp_path / "run", documents())
    (run / "adapter").mkdir()
    given = [run, run / "adapter", run / "run.json", tmp_path / "ru", tmp_path, run]
    with pytest.raises(UserError) as refused:
        report(given)
    adapter, file, absent, no_run, twice = refused.value.problems
    assert "holds no run" in adapter and f"the run is {run}" in adapter
    assert "is a file" in file and f"the run is {run}" in file
    assert f"did you mean {run}?" in absent
    assert "holds no run" in no_run and "given twice" in twice


def test_a_page_is_written_over_that_of_the_same_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, c = (write(tmp_path / name, documents()) for name in "abc")
    command.report(ReportOptions(runs=[a, b]))
    before = Path("report.html").read_bytes()
    command.report(ReportOptions(runs=[Path("b"), a]))
    assert Path("report.html").read_bytes() != before, "in another order the same runs"
    for given in ([a, c], [a]):
        with pytest.raises(UserError, match=r"report\.html holds something other"):
            command.report(ReportOptions(runs=given, output=Path("report.html")))
    command.report(ReportOptions(runs=[a, c], output=Path("ac.html")))
    (a / "report.html").write_text("of an older version")
    command.report(ReportOptions(runs=[a]))
    assert "<h2>Outcome</h2>" in (a / "report.html").read_text()
    assert str(tmp_path) not in (a / "report.html").read_text().partition("<title>")[0]
