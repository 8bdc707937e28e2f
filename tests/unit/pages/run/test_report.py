"""The page of a run says what its files say: of a whole run, one that is being written, one that
failed, one of an earlier program, and of files that hold anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llama.pages.run import plots
from llama.pages.run.report import read_runs, report
from tests.support.html_page import Page

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}&amp;"
LOSSES: list[float | None] = [2.5, 2.25, None, 1.75, 1.5, 1.25, 1.125, 1.0625]
HELD_OUT = {0: 2.75, 4: 1.9375, 8: 2.125}


def step_line(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": (step - 1) // 4,
        "loss": loss,
        "learning_rate": 1e-3 / step,
        "grad_norm": 0.5 * step,
        "loss_scale": None,
        "skipped": loss is None,
        **({"skip_reason": "a gradient is not finite"} if loss is None else {}),
        "seconds": 0.5,
        "tokens_per_second": 100.0 + step,
        "peak_memory_bytes": step << 28,
        **more,
    }


def eval_line(step: int, loss: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step // 4, "eval_loss": loss}


def metrics_lines() -> list[dict[str, Any]]:
    lines = [eval_line(0, HELD_OUT[0])]
    for step, loss in enumerate(LOSSES, start=1):
        lines.append(step_line(step, loss))
        if step in HELD_OUT:
            lines.append(eval_line(step, HELD_OUT[step]))
    return lines


def norms_lines() -> list[dict[str, Any]]:
    names = [
        f"layers.{layer}.attention.{target}.lora.{factor}"
        for layer in range(3)
        for target in ("wq", "wv")
        for factor in ("a", "b")
    ]
    return [{"step": step, "norms": dict.fromkeys(names, 1.0 + step)} for step in (4, 8)]


def documents(text: str = "plain") -> dict[str, Any]:
    """Everything that a run's folder holds, with `text` wherever a text may stand."""
    return {
        "run.json": {
            "command": ["/opt/x/bin/python3", "/opt/x/bin/deepspeed", "launcher/train.py", text],
            "working_directory": "/opt/x",
            "options": {"model": text, "epochs": 2, "lora": {"rank": 8, "targets": ["wq", text]}},
            "deepspeed": {"train_batch_size": 4, "zero_optimization": {"stage": 1}, text: text},
            "precision": "bf16",
            "notes": [text],
            "steps": 8,
            "topology": {"world_size": 2, "tensor_parallel": 1, "data_parallel": 2},
            "trainable_parameters": 921_600,
            "total_parameters": 135_436_608,
            "model": {"dim": 64, text: text},
            "sha256": {"model": "ab" * 32, "tokenizer": text},
            "data": [{"option": "data", "files": [f"/opt/x/{text}"], "report": text}],
            "plan": {
                "terms": {"weights": 3 << 29, text: 1 << 29},
                "peak_bytes": 2 << 30,
                "seconds_per_step": 0.25,
            },
            "packages": {"torch": text},
            "device": text,
            "resumed": [{"step": 4, "from": text, "world_size": 1}],
        },
        "summary.json": {
            "status": "failed",
            "error": text,
            "steps": 8,
            "epoch_losses": [2.2, 1.3],
            "eval_loss_before": 2.75,
            "eval_loss": 2.125,
            "kept_step": 4,
            "answers_step": 4,
            "seconds": 75.0,
            "tokens_per_second": 104.5,
            "peak_memory_bytes": 2 << 30,
            "first_steps": {"step": 3, "tensors": 12},
            "replica_checks": 2,
        },
        "metrics.jsonl": metrics_lines(),
        "norms.jsonl": norms_lines(),
        "samples.jsonl": [
            {"rows": rows, "prompt": text, "before": f"b {text}", "after": f"a {text}"}
            for rows in ("training", "held-out")
        ],
    }


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif name.endswith(".jsonl"):
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / name).write_text(json.dumps(content))
    return folder


def test_its_numbers_are_the_files_(tmp_path: Path) -> None:
    page = Page(report([write(tmp_path / "run", documents())]))
    assert page.row("status") == ["failed, 8 of 8 steps"]
    assert page.row("held-out loss") == ["2.7500 before, 2.1250 at the end"]
    assert page.row("lowest held-out loss") == ["1.9375 at step 4"]
    assert page.row("the run gives") == ["step 4, the best"]
    assert page.row("training loss, last epoch") == ["1.3000"]
    assert page.row("time") == ["1:15 min"] and page.row("tokens per second") == ["104"]
    assert page.row("peak memory") == [f"2.00 GiB ({2 << 30:,} bytes)"]
    assert page.row("planned peak of tensors") == [f"2.00 GiB ({2 << 30:,} bytes)"]
    assert page.row("planned time of a step") == ["0.25 s"]
    assert page.row("its measured median") == ["0.5 s"]
    epochs = page.rows.index(["epochs done", "training, mean of the epoch", "held-out", "at step"])
    assert page.rows[epochs + 1 : epochs + 4] == [
        ["0", "-", "2.7500", "0"],
        ["1", "2.2000", "1.9375 (lowest)", "4"],
        ["2", "1.3000", "2.1250", "8"],
    ]
    assert page.row("3") == ["a gradient is not finite"]
    assert page.row("every adapter tensor trains")[0] == (
        "all 12 had a gradient and moved by step 3"
    )
    assert page.row("replicas on all ranks")[0] == "equal by hash at 2 checkpoints"
    assert page.row("4") == ["plain", "world_size 1"]
    assert page.row("tokenizer") == ["plain"]
    assert "deepspeed launcher/train.py plain" in page.blocks


def test_of_a_run_without_an_adapter_none_is_spoken_of(tmp_path: Path) -> None:
    files = documents()
    files["run.json"]["options"]["method"] = "full"
    files["summary.json"]["optimizer_state_bytes"] = 1 << 20
    files["norms.jsonl"] = [
        {"step": step, "norms": {"layers.0.attention.wq.weight": 1.0, "norm.weight": 2.0}}
        for step in (4, 8)
    ]
    page = Page(report([write(tmp_path / "run", files)]))
    assert page.row("every parameter trains")[0] == "all 12 had a gradient and moved by step 3"
    assert (
        page.row("the optimizer holds the parameters alone")[0] == "within what their states need"
    )
    assert "adapter" not in page.text


def test_its_figures_are_the_files_(tmp_path: Path) -> None:
    (run,) = read_runs([write(tmp_path / "run", documents())])
    assert run.steps["loss"] == LOSSES and run.steps["step"] == [*range(1, 9)]
    assert {one.step: one.loss for one in run.evaluations} == HELD_OUT
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", report([tmp_path / "run"]))
    assert {"training", "held-out (lowest: 1.9375, step 4)"} <= set(texts)
    assert {"planned", "measured", "weights", "measured peak"} <= set(texts)
    assert {"A: norm by layer", "B: norm by layer", "wq at step 4", "wv at step 8"} <= set(texts)


def test_whatever_the_files_hold_is_text(tmp_path: Path) -> None:
    plain = Page(report([write(tmp_path / "run", documents())]))
    name = "<script>alert(1)<"
    hostile = Page(report([write(tmp_path / name, documents(HOSTILE))]))
    assert hostile.tags == plain.tags
    assert [key for key, _ in hostile.attributes] == [key for key, _ in plain.attributes]
    cut = 1  # the legend's text
    assert hostile.text.count(HOSTILE) == plain.text.count("plain") - cut
    assert f"Run {name}" in hostile.text


def test_every_table_and_figure_names_its_file(tmp_path: Path) -> None:
    page = report([write(tmp_path / "run", documents())])
    blocks = re.split(r'<div class="block', page)[1:]
    for block in blocks:
        if ("<svg" in block or "<table" in block) and "could not be read" not in block:
            assert re.search(r'Source: .*\.jsonl?|col">source<', block), block[:300]


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_a_run_that_was_killed(kept: int, tmp_path: Path) -> None:
    """Half a last line, and no summary."""
    lines = [json.dumps(step_line(k, v)) for k, v in enumerate(LOSSES[:kept], start=1)]
    files = {"run.json": documents()["run.json"]}
    files["metrics.jsonl"] = ("\n".join(lines) + '\n{"step": 9, "lo').encode()
    folder = write(tmp_path / "run", files)
    page = Page(report([folder]))
    assert page.row("status") == [f"no end recorded, {kept} of 8 steps"]
    assert f"The last step that it wrote is {kept}." in page.text
    assert f"metrics.jsonl: line {kept + 1}, the last, is cut off and left out" in page.text
    assert page.row("peak memory") == [f"{kept / 4:.2f} GiB ({kept << 28:,} bytes)"]


def test_steps_that_come_again_replace_the_first_try(tmp_path: Path) -> None:
    again = [step_line(3, 0.5), step_line(4, 0.25), eval_line(4, 0.125)]
    files = documents() | {"metrics.jsonl": metrics_lines() + again}
    (run,) = read_runs([write(tmp_path / "run", files)])
    assert run.steps["step"] == [1, 2, 3, 4] and run.steps["loss"] == [2.5, 2.25, 0.5, 0.25]
    assert run.skipped == []
    assert [(one.step, one.loss) for one in run.evaluations] == [(0, 2.75), (4, 0.125)]


def test_a_run_that_failed_before_its_first_step(tmp_path: Path) -> None:
    files = documents("no room left")
    kept = {name: files[name] for name in ("run.json", "summary.json")}
    kept["summary.json"] = {"status": "failed", "error": "the words\nof it", "seconds": 1.0}
    page = Page(report([write(tmp_path / "run", kept | {"metrics.jsonl": b""})]))
    assert page.row("status") == ["failed, 0 of 8 steps"]
    assert "the words\nof it" in page.blocks
    assert "No step and no evaluation was written." in page.text


@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl"])
def test_any_one_file_alone_is_a_run(name: str, tmp_path: Path) -> None:
    page = Page(report([write(tmp_path / "run", {name: documents()[name]})]))
    missing = {"run.json", "metrics.jsonl"} - {name}
    assert all(f"{other}" in page.text for other in missing)


def spoilt(document: Any) -> list[Any]:
    """`document` with one value at a time replaced by something of another type."""
    found = []
    for other in (None, [], {}, "x", -1, True, 1e400, [[1], {"a": [None]}], {"a": {"b": 1}}):
        if isinstance(document, dict):
            found += [{**document, key: other} for key in document]
            for key, value in document.items():
                if isinstance(value, dict | list):
                    found += [{**document, key: inner} for inner in spoilt_once(value, other)]
    return found


def spoilt_once(value: Any, other: Any) -> list[Any]:
    if isinstance(value, dict):
        return [{**value, key: other} for key in value]
    return [[*value[:index], other, *value[index + 1 :]] for index in range(len(value))]


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_values_of_other_types_are_shown_or_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without drawing, which takes time: what is drawn is looked at before."""
    files = documents() | {"metrics.jsonl": [], "norms.jsonl": []}
    folder = write(tmp_path / "run", files)
    drawn = plots.lines([], "", "")
    monkeypatch.setattr(plots, "stacked_bars", lambda *_, **__: drawn)
    monkeypatch.setattr(type(drawn), "svg", lambda _: "<svg></svg>")
    for document in [*spoilt(files[name]), None, [], "text", 7]:
        write(folder, {name: document})
        assert "<h2>Outcome</h2>" in report([folder]), document


def test_lines_of_other_types_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = [b"[1]", b'"x"', b"{", b"\xff\xfe", b"1" * 30, b"[" * 100_000]
    good = b"\n".join(json.dumps(line).encode() for line in metrics_lines())
    odd = [{"step": "x", "loss": 1.0}, {"step": 9}, {"step": 9, "loss": "y", "seconds": []}]
    files = documents()
    files["metrics.jsonl"] = b"\n".join([*bad, good, *(json.dumps(o).encode() for o in odd), b""])
    files["samples.jsonl"] = [{"prompt": 1, "before": "b", "after": "c"}, {}]
    files["norms.jsonl"] = [{"step": 1}, {"norms": {}}, {"step": 2, "norms": {"x": "y", "z": 1}}]
    (run,) = read_runs([write(tmp_path / "run", files)])
    assert run.steps["loss"] == [*LOSSES, None] and len(run.problems) == 5 + 1 + 2
    assert "<h2>Outcome</h2>" in report([tmp_path / "run"])


def test_a_sample_of_other_rows_is_named(tmp_path: Path) -> None:
    files = documents()
    one = files["samples.jsonl"][0]
    files["samples.jsonl"] = [one, one | {"rows": "heldout"}, one | {"rows": ["training"]}]
    (run,) = read_runs([write(tmp_path / "run", files)])
    assert [sample["rows"] for sample in run.samples] == ["training"]
    assert [problem.rpartition(", ")[2] for problem in run.problems] == [
        'found "heldout"',
        'found ["training"]',
    ]


@pytest.mark.parametrize("size", [1e299, 1e308, -1e308])
def test_numbers_that_no_axis_can_hold_are_gaps(size: float, tmp_path: Path) -> None:
    """Of a step and of all that is measured of it."""
    lines = [step_line(k, size if k % 2 else 1.0, grad_norm=abs(size)) for k in range(1, 4)]
    lines += [step_line(10**15 + k, -size, tokens_per_second=size) for k in range(3)]
    lines[-1]["peak_memory_bytes"] = lines[-1]["seconds"] = abs(size)
    lines.append(eval_line(10**15 + 3, size))
    files = documents() | {"metrics.jsonl": lines}
    assert "<svg" in report([write(tmp_path / "run", files)])


def test_each_evaluation_has_its_row_and_what_was_before_training_is_no_best(
    tmp_path: Path,
) -> None:
    """Also in mid-epoch; of very many those at an epoch's end and the best."""
    files = documents()
    losses = {0: 0.5, 2: 2.0, 4: 1.9, 6: 1.0, 8: 1.5}
    files["metrics.jsonl"] = [
        {"step": step, "epoch": step / 4, "eval_loss": loss} for step, loss in losses.items()
    ]
    page = Page(report([write(tmp_path / "run", files)]))
    assert page.row("lowest held-out loss") == ["1.0000 at step 6"]
    rows = [["0.5", "-", "2.0000", "2"], ["1.5", "-", "1.0000 (lowest)", "6"]]
    assert all(row in page.rows for row in rows)
    files["metrics.jsonl"] += [
        {"step": 8 + k, "epoch": 2 + k / 200, "eval_loss": 3.0} for k in range(1, 100)
    ]
    page = Page(report([write(tmp_path / "long", files)]))
    assert rows[1] in page.rows and rows[0] not in page.rows
    assert ["2", "1.3000", "1.5000", "8"] in page.rows


def test_nan_is_a_gap_and_never_the_best(tmp_path: Path) -> None:
    lines = [eval_line(0, None), step_line(1, None), eval_line(4, 3.0), eval_line(8, None)]
    (run,) = read_runs([write(tmp_path / "run", documents() | {"metrics.jsonl": lines})])
    assert run.best is not None and (run.best.step, run.best.loss) == (4, 3.0)


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    lines = [step_line(k, 2.0 + (k % 7) / 10) for k in range(1, 20_001)]
    lines[12_345]["loss"] = 77.0
    files = documents() | {"metrics.jsonl": lines}
    page = report([write(tmp_path / "run", files)])
    assert len(page) < 600_000  # each of six curves is of some 500 points of 30 bytes, twice
    figure = plots.loss_figure(read_runs([tmp_path / "run"])[0])
    assert figure is not None and "80" in re.findall(r">(\d+)</text>", figure.svg())


def test_smoothing_is_a_mean_of_what_is_there() -> None:
    assert plots.smoothed([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    assert plots.smoothed([1.0, 2.0, 6.0, None], 3) == [1.5, 3.0, 4.0, 6.0]
    assert plots.smoothed([None, None, None], 1) == [None, None, None]


def test_several_runs_show_what_differs_and_no_more(tmp_path: Path) -> None:
    one, two = documents(), documents()
    two["run.json"]["options"]["lora"]["rank"] = 64
    two["run.json"]["options"]["output_dir"] = "elsewhere"
    two["samples.jsonl"][0]["after"] = "another text"
    two["summary.json"] |= {"status": "finished", "eval_loss": 1.875}
    folders = [write(tmp_path / "low", one), write(tmp_path / "high", two)]
    html = report(folders)
    page = Page(html)
    assert page.row("options.lora.rank") == ["8", "64"]
    assert not any(row and row[0] in ("options.epochs", "options.output_dir") for row in page.rows)
    assert page.row("status") == ["failed, 8 of 8 steps", "finished, 8 of 8 steps"]
    assert {"a plain", "another text", "b plain"} <= set(page.blocks)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", html)
    for label in ("low", "high"):
        assert texts.count(label) == 2  # training, throughput; and held-out, with its lowest
        assert texts.count(f"{label} (lowest: 1.9375, step 4)") == 1


def test_runs_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    folders = [write(tmp_path / name / "run", documents()) for name in ("a", "b")]
    assert [run.label for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_a_name_of_any_bytes_is_compared_as_text(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, documents()) for name in ("run\udcff", "other")]
    assert "run\ufffd" in report(folders).encode().decode()
