"""The page that a run leaves, however it ended, and the command that makes it anew: what they say
is what the run's files hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.html_page import Page
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import launched, read_lines

pytestmark = pytest.mark.slow

KILLED_AT, KIND = 3, "zero1-fp32"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Runs that finished, that were stopped and then killed, that went on, and that failed; and the
    pages that they had left by then."""
    case = Case(tmp_path_factory.mktemp("report"), pages=True)
    case.add("straight", settings(KIND), None)
    case.add("resumed", settings(KIND), KILLED_AT)
    case.add("failed", settings(KIND), None, "--save_every", "1", full_at=2, limit=20_000)
    case.go()
    return case


def made(out: Path) -> Page:
    """The page that the run itself has left."""
    return Page((out / "report.html").read_text(encoding="utf-8"))


def assert_it_says_what_the_files_hold(page: Page, out: Path, status: str) -> None:
    summary = json.loads((out / "summary.json").read_text())
    lines = read_lines(out / "metrics.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert summary["status"] == status and steps == [*range(1, steps[-1] + 1)]
    assert page.row("status") == [f"{status}, {steps[-1]} of {STEPS} steps"]
    before, last = (
        "-" if loss is None else f"{loss:.4f}"
        for loss in (summary["eval_loss_before"], summary.get("eval_loss"))
    )
    assert page.row("held-out loss") == [f"{before} before, {last} at the end"]
    evaluations = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    del evaluations[0]  # before the training there is nothing to keep
    best = min(evaluations, key=lambda step: evaluations[step], default=None)
    lowest = "-" if best is None else f"{evaluations[best]:.4f} at step {best}"
    assert page.row("lowest held-out loss") == [lowest]
    head = page.rows.index(["epochs done", "training, mean of the epoch", "held-out", "at step"])
    for epoch, mean in enumerate(summary["epoch_losses"], start=1):
        assert page.rows[head + 1 + epoch][:2] == [str(epoch), f"{mean:.4f}"]
    peak = summary["peak_memory_bytes"]
    assert page.row("peak memory") == [f"{peak / 2**30:.2f} GiB ({peak:,} bytes)"]


def test_a_run_that_finished(case: Case) -> None:
    out = case.out("straight")
    page = made(out)
    assert_it_says_what_the_files_hold(page, out, "finished")
    record = json.loads((out / "run.json").read_text())
    assert page.row("examples") == [record["sha256"]["examples"]]
    samples = read_lines(out / "samples.jsonl")
    assert [sample["rows"] for sample in samples] == ["training"] * 4 + ["held-out"] * 3
    for sample in samples:
        assert {sample["prompt"], sample["before"], sample["after"]} <= set(page.blocks)
    norms = read_lines(out / "norms.jsonl")
    assert [line["step"] for line in norms] == [STEPS // 2, STEPS]
    assert all(norm > 0 for norm in norms[-1]["norms"].values()) and len(norms[0]["norms"]) == 8
    assert page.row("replicas on all ranks")[0] == "one process: there is nothing to compare"
    assert page.row("every adapter tensor trains")[0].startswith("all 8 had a gradient")
    assert "It was not resumed." in page.text
    done = launched("python", "report.py", out, "--output", case.folder / "anew.html", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["runs"][0]["status"] == "finished" and told["runs"][0]["steps"] == STEPS
    assert (case.folder / "anew.html").read_bytes() == (out / "report.html").read_bytes()


def test_a_run_that_was_killed_and_resumed(case: Case) -> None:
    """As SIGKILL leaves a folder: no summary, half a last line, a step past the checkpoint."""
    out = case.out("resumed")
    assert_it_says_what_the_files_hold(made(out), out, "interrupted")
    for name in ("summary.json", "report.html"):
        (out / name).unlink()
    with (out / "metrics.jsonl").open("a") as file:
        step = read_lines(out / "metrics.jsonl")[-1] | {"step": KILLED_AT + 1}
        file.write(json.dumps(step) + '\n{"step": 5, "epo')
    done = launched("python", "report.py", out)
    assert done.returncode == 0, done.stderr
    page = made(out)
    assert page.row("status") == [f"no end recorded, {KILLED_AT + 1} of {STEPS} steps"]
    assert "the last, is cut off and left out" in page.text

    case.add("resumed", settings(KIND), None)
    case.go()
    page = made(out)
    assert_it_says_what_the_files_hold(page, out, "finished")
    assert "resumed 1 times" in page.text and "cut off" not in page.text
    (source,) = [row for row in page.rows if row[1:2] == [f"{out}/checkpoints/step-{KILLED_AT}"]]
    assert source[0] == str(KILLED_AT)
    for name in ("norms.jsonl", "samples.jsonl"):
        assert (out / name).read_bytes() == (case.out("straight") / name).read_bytes()


def test_a_run_that_failed(case: Case) -> None:
    out = case.out("failed")
    page = made(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "failed" and "could not be saved" in summary["error"]
    assert summary["error"] in page.blocks
    assert page.row("status")[0].startswith("failed, ")


def test_several_side_by_side(case: Case) -> None:
    done = launched(
        "python",
        "report.py",
        case.out("straight"),
        case.out("failed"),
        *("--output", case.folder / "both.html"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{case.folder / 'both.html'}\n"
    html = (case.folder / "both.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.row("options.save_every") == ["-", "1"]
    assert page.row("status")[0] == f"finished, {STEPS} of {STEPS} steps"
    legend = re.findall(r"<text[^>]*>(straight|failed)</text>", html)
    assert {"straight", "failed"} == set(legend)
