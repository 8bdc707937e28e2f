"""The fault matrix: every fault injected for real, and a table of what came of it.

    python -m tests.faults.matrix [--kills 200] [--seed 0] [--only PATTERN] [--most N] [--workers 2]

What is injected where follows from the seed. Exits with 1 where an outcome is not the promised
one: the folder and log of that run are then named, and kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.rows import Row, rows
from tests.faults.setting import BASE, EVALUATED, ONE, PLAIN, SHARDED, TWO, WHOLE, Case, Setting


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults that this pattern finds")
    parser.add_argument("--most", type=int, default=1000, help="of each fault at most so many")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    setting = Setting(folder)
    for shape in (ONE, PLAIN, TWO, SHARDED, BASE, WHOLE, EVALUATED):
        setting.expected(shape)  # before any fork, and known to all
    chosen = [
        replace(row, times=min(row.times, asked.most))
        for row in rows(setting, asked.kills)
        if re.search(asked.only, row.fault)
    ]
    results = run_all(setting, chosen, asked.seed, asked.workers)
    print(table(chosen, results))
    minutes = (time.monotonic() - began) / 60
    failed = [result for result in results if result["problem"]]
    complete = all(len(lost_by(row, results)) >= row.times for row in chosen)
    count = sum(len(result["lost"]) for result in results)
    print(
        f"\n{count} faults injected in {minutes:.1f} minutes, seed {asked.seed}; {failures(failed)}"
    )
    for result in failed:
        print(f"\n{result['fault']} ({result['out']}):\n{result['problem']}", file=sys.stderr)
    if not failed:
        shutil.rmtree(folder)
    return 0 if chosen and complete and not failed else 1


def failures(failed: list[dict[str, Any]]) -> str:
    return f"{len(failed)} NOT as promised" if failed else "all as promised"


def run_all(setting: Setting, chosen: list[Row], seed: int, workers: int) -> list[dict[str, Any]]:
    """The result of each injection. The work is shared out among forks of this process, which has
    imported all that a run needs and started nothing."""
    path = setting.folder / "results.jsonl"
    path.touch()
    children = []
    gc.freeze()  # or each fork's collector would copy the pages that all share
    for _ in range(workers):
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _work(setting, chosen, seed, path)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    assert not any(statuses), "a worker has failed"
    return read_results(path)


def read_results(path: Path) -> list[dict[str, Any]]:
    whole, _, _ = path.read_text().rpartition("\n")  # another worker may be in the last line
    return [json.loads(line) for line in whole.splitlines()]


def _work(setting: Setting, chosen: list[Row], seed: int, path: Path) -> None:
    parent = os.getppid()
    for number, row in enumerate(chosen):
        for time_ in range(row.times if row.certain else 3 * row.times):
            if len(lost_by(row, read_results(path))) >= row.times:
                break
            out = setting.folder / f"{number}-{time_}"
            if os.getppid() != parent:
                return
            if not _claimed(out.with_suffix(".claim")):
                continue
            result = _inject(setting, row, out, time_, seed)
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            if not result["problem"]:
                shutil.rmtree(out, ignore_errors=True)


def _claimed(path: Path) -> bool:
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def _inject(setting: Setting, row: Row, out: Path, time_: int, seed: int) -> dict[str, Any]:
    case = Case(setting, out, random.Random(f"{seed}:{row.fault}:{time_}"), time_)
    lost: int | list[int] = []
    problem = ""
    try:
        lost = row.inject(case)
    except BaseException as error:
        problem = "".join(traceback.format_exception(error))
        lost = [-1]
    lost = lost if isinstance(lost, list) else [lost]
    print(f"{row.fault}, {time_ + 1}: {'FAILED' if problem else lost}", file=sys.stderr, flush=True)
    return {"fault": row.fault, "out": str(out), "lost": lost, "problem": problem}


def lost_by(row: Row, results: list[dict[str, Any]]) -> list[int]:
    """The steps lost by each injection of a fault."""
    return [lost for result in results if result["fault"] == row.fault for lost in result["lost"]]


def table(chosen: list[Row], results: list[dict[str, Any]]) -> str:
    lines = ["| fault | injected | promised | outcome | steps lost |", "|---|---|---|---|---|"]
    for row in chosen:
        lost = lost_by(row, results)
        failed = [r for r in results if r["fault"] == row.fault and r["problem"]]
        low, high = min(lost, default=0), max(lost, default=0)
        steps = str(low) if low == high else f"{low} to {high}"
        outcome = failures(failed) if failed else "as promised"
        lines.append(f"| {row.fault} | {len(lost)} | {row.promise} | {outcome} | {steps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
