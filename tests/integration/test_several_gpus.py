"""The script that measures several GPUs, on CPU: its sub-runs, its rows, its arithmetic."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llama.commands.benchmark import sub_run
from tests.gpu.communication import spent
from tests.gpu.several_gpus import PARTS, Session
from tests.gpu.several_tables import TABLES, Measure, beside, tables
from tests.gpu.several_works import SEVENTY, SHARDED, Plan, Work, large_runs, needed, speed_runs
from tests.support.living import lives
from tests.support.tiny_runs import write_model

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
    first, second = python("import time; time.sleep(2.1); print('{}')"), python("print('{}')")
    ran, not_run = measured(tmp_path, first, second, budget=2.0)
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
    (run,) = measured(tmp_path, python(text, limit=10))
    assert run["error"] == "no result after 10 s"
    rank, deadline = int(pid.read_text()), time.monotonic() + 20
    while lives(rank):
        assert time.monotonic() < deadline, f"{rank} lives on"
        time.sleep(0.05)


def test_a_proof_that_fails_tells_what_it_found(tmp_path: Path) -> None:
    moved = ("updated adapter", "distance moved")
    names = ("loss", "gradient norm", *moved, "replicas, by hash")
    rows = [{"what": name, "deviation": 0.25, "agrees": False} for name in names]
    title = "data parallel 2, ZeRO-1, base sharded over 2, accumulation 2, bf16, against one"
    verdict = {"agrees": False, "runs": [{"run": title, "agrees": False, "rows": rows}]}
    run = python(f"print({json.dumps(verdict)!r}); raise SystemExit(1)", part="verify")
    assert measured(tmp_path, run)[0]["error"].startswith("exit status 1")
    assert "| DP | bf16 | 2.5e-01 | 2.5e-01 | 2.5e-01 | 2.5e-01 | NO | DIFFERS |" in tables([run])


def test_what_a_card_cannot_hold_is_not_started(tmp_path: Path) -> None:
    """70B is 131.4 GiB of weights: two cards of 79.6 GiB hold their halves and a short step, and in
    eight bits a whole one; two of 24 hold none of them."""
    work = Work(SEVENTY, 1, 2048)
    assert 131.4 * GIB < needed(work, 1, "TP") < 143 * GIB
    fits = [(run.name, run.work) for run in large_runs(Plan(2, tmp_path, 79.6 * GIB))]
    name = "llama-3-70b, "
    assert fits == [
        ("TP", name + "2 x 2048, block"),
        (SHARDED, name + "1 x 2048, block"),
        ("TP", name + "2 x 4096, block, fp8"),
        (SHARDED, name + "2 x 4096, block, fp8"),
    ]
    none = list(large_runs(Plan(2, tmp_path, 24 * GIB)))
    assert all(run.skip for run in none)
    found = measured(tmp_path, *none)
    assert [run["seconds"] for run in found] == [None] * 4
    assert found[0]["error"] == "needs about 73 GiB of each GPU, which has 24"
    assert "| llama-3-70b, 1 x 2048, block | TP | needs about 73 GiB" in tables(none)


def test_every_number_of_gpus_is_timed_at_last(tmp_path: Path) -> None:
    runs = [(run.name, run.gpus) for run in speed_runs(Plan(8, tmp_path))]
    assert runs[:3] == [("DP", 1), ("DP", 8), (SHARDED, 8)]
    assert runs[-2:] == [("DP", 2), ("DP", 4)]


def test_each_is_put_beside_what_it_is_told_to_reach(tmp_path: Path) -> None:
    """A shared base beside as many whole ones, what one GPU could do alone beside one."""
    runs = list(speed_runs(Plan(4, tmp_path)))
    for number, run in enumerate(runs, 1):
        rate = {name: 1000.0 * number for name in ("median", "min", "max")}
        sizes = {"peak_memory_bytes": GIB, "loading_peak_memory_bytes": GIB}
        run.result = {"tokens_per_second": rate, "tflops": 8.0, "loss_first": 1.0, **sizes}
    places = {(run.work, run.name, run.gpus): number for number, run in enumerate(runs, 1)}
    for run in runs:
        if run.reach is not None:
            count = run.gpus if run.name == SHARDED else 1
            whole = 1000.0 * places[run.work, "DP", count]
            assert beside(run, runs) == whole * run.gpus / count
    table = tables(runs)
    assert "| 4 | 3,000 (3,000 - 3,000) | 750 | 150.0% | 96% | 2.0 |" in table


def test_every_part_has_a_table_and_names_what_it_runs(tmp_path: Path) -> None:
    """Tiny ones are the same runs: none lacks what the whole has."""
    assert PARTS.keys() == TABLES.keys()
    tiny = Plan(2, tmp_path, tiny=write_model(tmp_path / "model"))
    for part, runs in PARTS.items():
        names = [
            [(run.part, run.name, run.gpus) for run in runs(p)] for p in (tiny, Plan(2, tmp_path))
        ]
        assert names[0] == names[1] and {name[0] for name in names[0]} == {part}


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
