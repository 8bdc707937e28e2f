"""`benchmark --suite`: what it refuses, whose turn it is, what it writes. No speed is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.commands.benchmark import peer, suite
from llama.commands.benchmark.sub_run import SubRun
from llama.commands.benchmark.suite import Session, run_suite
from llama.commands.benchmark.suite_rows import ONE_GPU, SUITES, Work
from llama.commands.benchmark.suite_table import page
from llama.errors import UserError
from llama.model.presets import PRESETS
from llama.settings import BenchmarkOptions, check_benchmark
from tests.support.tiny_runs import started, succeeded

SPEEDS = {"ours": 300.0, "liger": 200.0, "unsloth": 250.0, "unsloth+packing": 100.0}
STEP, SAME = Work(5, "llama-7b"), Work(6, "llama-7b", base="fp8")


def result(rate: float) -> dict[str, Any]:
    """Of a side that makes `rate` tokens a second in steps of 1000 tokens."""
    return {
        "tokens_per_second": {"median": rate},
        "seconds_per_step": {"median": 1000 / rate},
        "tokens": 2000,
        "seconds": 2000 / rate,
        "matrix_share": 0.5,
        "matrix_tflops": 700.0,
        "peak_memory_bytes": 2**30,
        "reserved_memory_bytes": 2**31,
        "packages": {"torch": "2"},
        "device": "GPU",
        "cpu": "CPU",
    }


Go = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Go:
    """A session of works whose processes are pretended: their runs, and the page."""

    def pretended(run: SubRun, timeout: float) -> None:
        kind = run.command[run.command.index("--kind") + 1] if "--kind" in run.command else "ours"
        kind += "+packing" * ("--packing" in run.command)
        run.seconds, run.error, run.result = 1.0, None, result(SPEEDS.get(kind, 1.0))

    def play(*works: Work, installed: bool = True, **options: Any) -> Any:
        monkeypatch.setattr(SubRun, "run", pretended)
        found = object() if installed else None
        monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: found)
        given = BenchmarkOptions(suite="one-gpu", output_dir=tmp_path, **options)
        session = Session(given, tmp_path, tmp_path)
        session.go(list(works))
        document = json.loads((tmp_path / "one-gpu.json").read_text())
        return document["runs"], (tmp_path / "one-gpu.md").read_text()

    return play


def cells(text: str, row: int) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_sides_take_turns_and_ours_comes_last(go: Go) -> None:
    for pairs, expected in (
        (1, ["ours", "liger", "unsloth"]),
        (2, ["ours", "liger", "unsloth", "ours"]),
        (3, ["ours", "liger", "unsloth", "ours", "liger", "unsloth", "ours"]),
    ):
        runs, _ = go(STEP, pairs=pairs)
        assert [run["side"] for run in runs] == expected


def test_a_line_names_the_fastest_peer_and_the_ratio_to_it(go: Go) -> None:
    _, text = go(STEP)
    line = cells(text, 5)
    assert line[2:8] == ["3333.3", "300", "unsloth", "4000.0", "250", "1.200 (1.200 - 1.200)"]
    assert line[8:11] == ["50.0%", "1.00", "1.00"] and line[11] == "liger 200 tokens/s"


def test_a_peer_that_ran_the_same_work_in_this_call_does_not_run_again(go: Go) -> None:
    runs, text = go(STEP, SAME)
    peers = [run for run in runs if run["side"] == "unsloth"]
    assert [run["row"] for run in peers] == [5, 6] and peers[0]["result"] == peers[1]["result"]
    assert peers[0]["command"] == peers[1]["command"]
    assert cells(text, 6)[4] == "unsloth"


def test_a_peer_that_is_not_installed_is_a_note(go: Go) -> None:
    runs, text = go(STEP, installed=False)
    assert [run["error"] for run in runs if run["side"] == "unsloth"] == ["not installed: unsloth"]
    line = cells(text, 5)
    assert line[3] == "300" and line[4] == "-" and "unsloth: not installed" in line[11]


def test_graphs_are_told_and_memory_is_then_what_is_reserved(go: Go) -> None:
    runs, text = go(Work(2, "llama-7b", graphs=True))
    on = {run["side"]: "UNSLOTH_BLOCK_CUDAGRAPHS" in run["environment"] for run in runs}
    assert on == {"ours": False, "liger": False, "unsloth": True}
    line = cells(text, 2)
    assert line[4] == "unsloth+graphs" and line[9:11] == ["2.00", "2.00"]


def test_nothing_starts_once_the_budget_is_spent(go: Go) -> None:
    runs, text = go(STEP, budget=1e-9)
    assert all("budget" in run["error"] for run in runs)
    assert "budget" in cells(text, 5)[11]


def test_rows_without_a_tokenizer_are_a_note_and_the_next_work_goes_on(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_bundled_tokenizer", lambda self: None)
    runs, text = go(Work(7, "llama-3-8b", what="rows"), STEP)
    assert "--tokenizer" in runs[0]["error"] and cells(text, 5)[3] == "300"


def test_the_table_is_of_shapes_and_peers_that_there_are() -> None:
    assert {work.row for work in ONE_GPU} == set(range(1, 10))
    for works in SUITES.values():
        assert len({(work.row, work.name) for work in works}) == len(works)
        for work in works:
            assert work.model in PRESETS
            assert {name.partition("+")[0] for name in work.peers} <= set(peer.NEEDS)


# Options


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as raised:
        run_suite(BenchmarkOptions(suite="one-gpu", output_dir=tmp_path / "out"))
    assert raised.value.problems == ["--suite one-gpu: needs a CUDA device, and there is none"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"only": ("3", "x")}, "--only: expected among 1,2, found"),
        ({"pairs": 0}, "--pairs"),
        ({"budget": 0.0}, "--budget"),
        ({"batch": 3}, "--batch: has no effect with --suite"),
        ({"tokenizer": Path("nowhere.json")}, "--tokenizer"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as raised:
        run_suite(BenchmarkOptions(suite="tiny", **options))
    assert raised.value.problems[0].startswith(named)


def test_options_of_a_suite_need_one() -> None:
    (problem,) = check_benchmark(BenchmarkOptions(pairs=2), world_size=1)
    assert problem == "--pairs: has no effect without --suite"


# Batches of a peer

ROWS = [[([1, 2, 3], [-100, 2, 3]), ([4], [4])], [([5, 6], [5, 6])]]


def test_documents_of_a_packed_batch_are_told_apart() -> None:
    inputs, tokens = peer.packed(ROWS)  # type: ignore[arg-type]
    assert tokens == 6 and inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert inputs["labels"].tolist() == [[-100, 2, 3, -100, -100, 6]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert inputs["packed_seq_lengths"].tolist() == [3, 1, 2]


def test_padded_batches_hold_every_document_once_within_the_room() -> None:
    batches = peer.padded_batches(ROWS, room=4)  # type: ignore[arg-type]
    assert sum(tokens for _, tokens in batches) == 6
    for inputs, tokens in batches:
        assert inputs["input_ids"].numel() <= 4 or len(inputs["input_ids"]) == 1
        if "attention_mask" in inputs:
            assert int(inputs["attention_mask"].sum()) == tokens
            assert (inputs["labels"][inputs["attention_mask"] == 0] == -100).all()


@pytest.mark.slow
@pytest.mark.long
def test_all_of_it_works_on_a_cpu(tmp_path: Path) -> None:
    size = ("--suite", "tiny", "--only", "1", "--output_dir", str(tmp_path), "--json")
    document = succeeded(started("python", "launcher/benchmark.py", *size))
    assert document == json.loads((tmp_path / "tiny.json").read_text())
    sides = {run["side"]: run for run in document["runs"]}
    assert set(sides) == {"ours", "peft"} and not any(run["error"] for run in sides.values())
    assert sides["peft"]["result"]["tokens"] == sides["ours"]["result"]["tokens"] == 64
    assert page(document) == (tmp_path / "tiny.md").read_text()
