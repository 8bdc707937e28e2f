"""The script that measures several GPUs, on CPU: its sub-runs, its rows, its arithmetic."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llama.commands.benchmark import sub_run
from tests.gpu.communication import spent
from tests.gpu.several_gpus import Plan, Session, large_runs, needed, speed_runs
from tests.gpu.several_tables import Measure, tables

GIB = 2**30


def python(text: str, limit: float = 60, part: str = "speed") -> Measure:
    return Measure(part, "DP", 1, limit=limit, command=["-c", text])


def measured(tmp_path: Path, *runs: Measure, budget: float = 100) -> list[dict[str, Any]]:
    """What the file says of each."""
    Session(list(runs), tmp_path / "out.json", {"machine": {}}, budget).go()
    return json.loads((tmp_path / "out.json").read_text())["runs"]


def test_a_sub_run_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    out_of_memory = "import sys; sys.exit('torch.OutOfMemoryError: tried to allocate 1 GiB')"
    runs = [
        python("import sys; sys.exit('ValueError: no such thing\\nand the end of a report')"),
        python(out_of_memory),
        python("print('not an object')"),
    ]
    found = [run["error"] for run in measured(tmp_path, *runs)]
    assert found[0] == "exit status 1: ValueError: no such thing"
    assert found[1] == "out of memory: torch.OutOfMemoryError: tried to allocate 1 GiB"
    assert found[2] == "exit status 0: nothing on stderr"
    rows = tables(runs).splitlines()[4:]
    assert len(rows) == 3 and all(error in row for error, row in zip(found, rows, strict=True))


def test_nothing_is_started_once_the_budget_is_spent(tmp_path: Path) -> None:
    first, second = python("import time; time.sleep(0.3); print('{}')"), python("print('{}')")
    ran, not_run = measured(tmp_path, first, second, budget=0.2)
    assert ran["error"] is None and ran["result"] == {}
    assert not_run["error"] == "not run: the budget was spent" and not_run["seconds"] is None


def test_a_sub_run_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun does, it starts its process in another session and does not end by SIGTERM."""
    monkeypatch.setattr(sub_run, "GRACE", 0.2)
    pid = tmp_path / "pid"
    text = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
rank = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"],
                        start_new_session=True)
open({str(pid)!r}, "w").write(str(rank.pid))
time.sleep(600)
"""
    (run,) = measured(tmp_path, python(text, limit=3))
    assert run["error"] == "no result after 3 s"
    rank, deadline = int(pid.read_text()), time.monotonic() + 20
    while psutil.pid_exists(rank) and psutil.Process(rank).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{rank} lives on"
        time.sleep(0.05)


def test_a_proof_that_fails_tells_what_it_found(tmp_path: Path) -> None:
    names = ("loss", "gradient norm", "updated adapter", "replicas, by hash")
    rows = [{"what": name, "deviation": 0.25, "agrees": False} for name in names]
    title = "tensor parallel 2 x data parallel 1, ZeRO-1, accumulation 2, bf16, against one"
    verdict = {"agrees": False, "runs": [{"run": title, "agrees": False, "rows": rows}]}
    run = python(f"print({json.dumps(verdict)!r}); raise SystemExit(1)", part="verify")
    assert measured(tmp_path, run)[0]["error"].startswith("exit status 1")
    assert "| DP | bf16 | 2.5e-01 | 2.5e-01 | 2.5e-01 | NO | DIFFERS |" in tables([run])


def test_what_a_card_cannot_hold_is_not_started(tmp_path: Path) -> None:
    """70B is 128.5 GiB of weights: two cards of 79.6 GiB hold it at 2 x 2048 where each has half of
    every block, at 1 x 2048 where it gathers whole ones; one card does not, nor two of 40."""
    assert 128.5 * GIB < needed("llama-2-70b", 1, "TP", 1, 2048) < 140 * GIB
    fits = [run.name for run in large_runs(Plan(2, tmp_path, 79.6 * GIB)) if not run.skip]
    assert fits == ["TP, 2 x 2048", "ZeRO-3, 1 x 2048"]
    (tensor, zero) = large_runs(Plan(2, tmp_path, 40 * GIB))
    assert tensor.skip and zero.skip
    found = measured(tmp_path, tensor, zero)
    assert [run["seconds"] for run in found] == [None, None]
    assert found[0]["error"] == "needs about 71 GiB of each GPU, which has 40"


def test_every_number_of_gpus_is_timed_the_ends_first(tmp_path: Path) -> None:
    runs = [(run.name, run.gpus) for run in speed_runs(Plan(8, tmp_path))]
    assert runs[:4] == [("DP", 1), ("DP", 8), ("TP", 8), ("ZeRO-3", 8)]
    assert runs[4] == ("DP, base sharded", 8)
    assert set(runs[5:]) == {("DP", 2), ("DP", 4), ("TP", 2), ("TP", 4)}


def test_time_lost_is_that_in_which_only_a_collective_runs() -> None:
    """
    milliseconds   0    1    2    3    4    5    6
    products       ==========     =====
    collectives         ==========          =====    and a copy while nothing else runs, 6 to 7
                             =====
    """

    def kernel(name: str, start: float, stop: float, cat: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": 1e3 * start, "dur": 1e3 * (stop - start)}

    trace = [
        *(kernel("gemm", 0, 2), kernel("gemm", 3, 4), kernel("Memcpy", 6, 7, "gpu_memcpy")),
        *(kernel("ncclDevKernel_AllReduce", 1, 3), kernel("ncclDevKernel_AllGather", 2, 3)),
        kernel("ncclDevKernel_ReduceScatter", 5, 6),
        kernel("nccl:all_reduce", 0, 9, "gpu_user_annotation"),
        {"ph": "i", "cat": "kernel", "name": "no duration", "ts": 0},
    ]
    found = spent(trace, steps=2, device_type="cuda")
    assert vars(found) == {
        "communication": pytest.approx(3 / 2),
        "exposed": pytest.approx(2 / 2),
        "computation": pytest.approx(4 / 2),
        "collectives": 3 / 2,
    }


@pytest.mark.long
@pytest.mark.slow
def test_two_ranks_from_end_to_end(tmp_path: Path) -> None:
    """The part in which all of it meets: settings written, ranks started, profiles read."""
    argv = ["--gpus", "2", "--tiny", "--part", "communication", "--output", str(tmp_path)]
    run = python("")
    run.command = ["-m", "tests.gpu.several_gpus", *argv]
    run.environment = {"OMP_NUM_THREADS": "1"}
    run.run(timeout=500)
    content = json.loads((tmp_path / "several-gpus.json").read_text())
    assert [r["error"] for r in content["runs"]] == [None, None], run.error
    data, tensor = (r["result"]["cases"] for r in content["runs"])
    switches = [case["deepspeed"]["zero_optimization"] for case in data]
    found = [(switch["stage"], switch["overlap_comm"]) for switch in switches]
    assert found == [(stage, overlap) for stage in (1, 2, 3) for overlap in (False, True)]
    assert [case["topology"]["tensor_parallel"] for case in tensor] == [2]
    for case in [*data, *tensor]:
        assert len(case["milliseconds_per_step"]) == 2
        assert all(of_rank["communication"] > 0 for of_rank in case["milliseconds_per_step"])
    table = tables([Measure(**r) for r in content["runs"]]).splitlines()
    assert len(table) == 4 + 7 and table[-1].startswith("| TP 2 | 1 | - | ")
