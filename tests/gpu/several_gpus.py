"""Several GPUs of one host, measured in one go, from the project's root:

    python -m tests.gpu.several_gpus --gpus 2 --budget 540
    python -m tests.gpu.several_gpus --gpus 8 --part verify,kills

verify         every topology and ZeRO stage over NCCL against one process
speed          7B and 8B: tokens/s and memory, data-parallel (base whole and sharded, half and
               fp8), tensor-parallel, ZeRO-3, each beside what it is to reach
large          70B: tensor-parallel and over a sharded base, half and fp8, where the cards have the
               memory
long           8B, one sequence of 131,072 tokens: one GPU, and its tokens over all
kills          a rank killed at random under torchrun, five times, base whole and sharded
communication  what it costs a step, from a profile, and what overlapping gives

Parts run in the order given, each sub-run as processes of its own; what they printed goes to one
JSON file (in $OUT, unless --output says where), written anew after each, and tables come last. A
sub-run that fails is a row that says so. `--tiny` is the same on CPU with gloo, in minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.gpu.several_tables import Measure, tables
from tests.gpu.several_works import (
    SEVEN,
    WHOLE,
    Plan,
    large_runs,
    long_runs,
    speed_runs,
)
from tests.gpu.sub_runs import DEFAULTS, torchrun
from tests.support.tiny_runs import write_model

TOGETHER = {"verify": 5}
"""Sub-runs of a part that may share the GPUs: those that are not timed."""
BEYOND = 30.0
"""Seconds that the last sub-run may take beyond the budget."""


def verify_runs(plan: Plan) -> Iterator[Measure]:
    """The widths of the 7B model at few layers; and every stage and accumulation at tiny widths,
    all of a topology in one start."""

    def proof(what: str, options: str, stage: int = 1) -> Measure:
        files = ["--deepspeed", plan.settings(stage, 1, 2), "--model", plan.model(SEVEN)]
        command = [*torchrun(plan.gpus), "launcher/verify.py", *files, "--json", *options.split()]
        return Measure("verify", f"{what}, ZeRO-{stage}", plan.gpus, limit=200, command=command)

    degrees, n = plan.degrees()[::-1], plan.gpus
    for degree in degrees:
        whole = f"TP {degree} x DP {n // degree}"
        yield proof(whole, f"--layers 1 --tensor_parallel {degree}")
    yield from (proof(f"DP {n}", "--layers 1", stage) for stage in (2, 3))
    yield proof(f"SP {n}", f"--layers 2 --sequence_parallel {n}")
    # More layers than there are rooms for gathered ones.
    yield proof(f"DP {n}, base sharded", "--layers 5 --shard_base all")
    yield proof(f"DP {n}, base sharded, fp8", "--layers 5 --shard_base all --base fp8")
    yield proof(f"TP {n}, fp8", f"--layers 2 --tensor_parallel {n} --base fp8")
    for degree in degrees:
        if degree <= 4:  # the tiny model has 4 key/value heads
            options = f"--tensor_parallel {degree} --checkpointing block".split()
            command = [*torchrun(n), "-m", "tests.parity.topologies", *options]
            name = f"TP {degree} x DP {n // degree}, ZeRO 0-3, tiny"
            yield Measure("verify", name, n, limit=240, command=command)


SHARED = ["--shard_base", "--together", "3"]
"""Each start makes its base's memory known to the other ranks, for which it waits for its GPU."""


def kill_runs(plan: Plan) -> Iterator[Measure]:
    options = f"-m tests.gpu.kills --ranks {plan.gpus} {plan.kills}".split()
    if plan.tiny:
        options += ["--model", str(plan.tiny)]
    for name, more in (("DP, ZeRO-1", []), ("DP, base sharded, ZeRO-1", SHARED)):
        yield Measure("kills", name, plan.gpus, limit=270, command=[*options, *more])


def communication_runs(plan: Plan) -> Iterator[Measure]:
    """Data-parallel with and without overlapping, all in one start, and tensor-parallel. ZeRO-3
    comes last: caches of DeepSpeed's keep hold of a model that was cut up."""
    work = plan.sized(WHOLE)
    fixed = f"--model {work.model} --seq_len {work.tokens} {plan.timing}".split()
    fixed += "--lora.targets all-linear".split()
    stages = [(stage, overlap) for stage in (1, 2, 3) for overlap in (False, True)]
    files = {
        "DP": [plan.settings(stage, work.rows, 1, overlap) for stage, overlap in stages],
        "TP": [plan.settings(1, work.rows, 1)],
    }
    for placement, names in files.items():
        degree = plan.gpus if placement == "TP" else 1
        options = ["--files", ",".join(names), "--", *fixed, "--tensor_parallel", str(degree)]
        command = [*torchrun(plan.gpus), "-m", "tests.gpu.communication", *options]
        yield Measure("communication", placement, plan.gpus, limit=200, command=command)


PARTS = {
    "verify": verify_runs,
    "speed": speed_runs,
    "large": large_runs,
    "long": long_runs,
    "kills": kill_runs,
    "communication": communication_runs,
}


def asked(command: str) -> str:
    """What an NVIDIA tool says, or '' where it is not there."""
    try:
        return subprocess.run(command.split(), capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def machine(gpus: int) -> dict[str, Any]:
    """The cards and how they are linked; versions are with each result."""
    listed = asked("nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader")
    return {
        "gpus": listed.splitlines()[:gpus],
        "links": asked("nvidia-smi topo -m").rstrip(),
        "environment": {name: os.environ.get(name, value) for name, value in DEFAULTS.items()},
        "command": " ".join(["python", "-m", "tests.gpu.several_gpus", *sys.argv[1:]]),
    }


def card_memory(listed: list[str]) -> float | None:
    """Bytes of the smallest card."""
    sizes = [float(line.split(",")[1].split()[0]) * 2**20 for line in listed]
    return min(sizes, default=None)


class Session:
    """The sub-runs of one call, and the file they go to."""

    def __init__(self, runs: list[Measure], file: Path, head: dict[str, Any], budget: float):
        self.runs, self._file, self._head = runs, file, head
        self._deadline = time.monotonic() + budget
        self._lock = threading.Lock()

    def go(self) -> None:
        for part in dict.fromkeys(run.part for run in self.runs):
            with ThreadPoolExecutor(TOGETHER.get(part, 1)) as pool:
                list(pool.map(self._one, [run for run in self.runs if run.part == part]))

    def _one(self, run: Measure) -> None:
        left = self._deadline - time.monotonic()
        if left > 0 and not run.skip:
            run.run(timeout=min(run.limit, left + BEYOND))
        with self._lock:
            said = (run.part, run.name, run.gpus, run.seconds, run.error or "done")
            print(*said, sep=" | ", file=sys.stderr, flush=True)
            content = self._head | {"runs": [asdict(r) for r in self.runs]}
            self._file.write_text(json.dumps(content, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description="Several GPUs of one host, measured in one go.")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--part", default=",".join(PARTS), help="commas between them")
    parser.add_argument("--budget", type=float, default=540, help="seconds; then none is started")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on CPU")
    given = parser.parse_args()
    parts = given.part.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--part: expected among {','.join(PARTS)}, found {','.join(unknown)}")
    file = given.output if given.output.suffix == ".json" else given.output / "several-gpus.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    head = {"machine": machine(given.gpus)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.tiny:
            plan = Plan(
                given.gpus,
                folder,
                timing="--warmup 1 --steps 2",
                kills="--kills 1 --steps 12",
                tiny=write_model(folder / "model"),
            )
        else:
            plan = Plan(given.gpus, folder, card_memory(head["machine"]["gpus"]))
        runs = [run for part in parts for run in PARTS[part](plan)]
        head["settings"] = {f.name: json.loads(f.read_text()) for f in folder.glob("*.json")}
        session = Session(runs, file, head, given.budget)
        session.go()
    found = head["machine"]
    print(f"\n{tables(runs)}\n", found["command"], *found["gpus"], found["links"], file, sep="\n")
    return 0 if all(run.error is None or run.skip for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
