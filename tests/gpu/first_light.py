"""Times a GPU machine in one go, from the project's root: each row is a process of its own.

    python tests/gpu/first_light.py --part speed --budget 540      # ours and transformers + PEFT
    python tests/gpu/first_light.py --part report                  # the report's run on 40 GB

What each sub-run printed goes to one JSON file (in $OUT, unless --output says where), written anew
after each; a markdown table comes last. A sub-run that fails is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sub_runs import SubRun

from llama.commands.benchmark.sub_run import GIB, gib, markdown

PLAIN, LIGER = "bf16-adapters", "bf16-adapters+liger"
REPORT_GIB = {(1, 2048): 14.2, (4, 1024): 18.0, (4, 2048): 18.0}
"""The report's shapes to the most memory that a step may hold."""


@dataclass
class Timing(SubRun):
    """One process that times a shape."""

    model: str
    rows: int
    tokens: int
    checkpointing: str

    def cells(self) -> list[str]:
        return [self.model, f"{self.rows} x {self.tokens}", self.checkpointing]


def sub_run(command: str, model: str, rows: int, tokens: int, mode: str) -> Timing:
    case = f"--model random:{model} --batch {rows} --seq_len {tokens} --checkpointing {mode}"
    return Timing(model, rows, tokens, mode, command=f"{command} {case}".split())


def speed_runs() -> list[Timing]:
    """Each beside its peers; then ours alone where theirs has no such placement."""
    fixed = "--precision bf16 --warmup 2 --compile true"
    peers = f"tests/support/peer_benchmark.py {fixed} --pairs 3 --peer {PLAIN},{LIGER}"
    ours = f"launcher/benchmark.py {fixed} --steps 3 --json"
    return [
        sub_run(command, model, rows, tokens, mode)
        for command, modes in ((peers, ("none", "block")), (ours, ("ffn",)))
        for model in ("llama-7b", "llama-3-8b")
        for rows, tokens in ((2, 4096), (4, 1024))
        for mode in modes
    ]


def report_runs() -> list[Timing]:
    fixed = "--precision fp16 --memory_limit_gb 40 --warmup 2 --steps 5 --json"
    command = f"launcher/benchmark.py {fixed}"
    return [sub_run(command, "llama-7b", *shape, "block") for shape in REPORT_GIB]


SPEED_HEAD = [
    *("model", "shape", "checkpointing", "ours tok/s", "HF+PEFT tok/s", "+liger tok/s"),
    *("ours / best (min - max)", "ours TFLOP/s 4N", "with recomputation"),
    *("share of bf16 matrix rate", "with recomputation", "peak GiB ours", "peak GiB best peer"),
]
REPORT_HEAD = [
    *("model", "shape", "checkpointing", "tok/s", "TFLOP/s 4N", "with recomputation"),
    *("peak GiB", "at most", "reserved GiB", "loading peak GiB", "skipped steps", "holds"),
]


def speed(side: dict[str, Any]) -> str:
    return f"{side['tokens_per_second']['median']:,.0f}"


def rates(useful: float, done: float, matrix: float | None) -> list[str]:
    shares = [f"{rate / matrix:.1%}" if matrix else "-" for rate in (useful, done)]
    return [f"{useful:.1f}", f"{done:.1f}", *shares]


def speed_row(run: Timing) -> list[str]:
    result = run.result
    assert result is not None
    if "peers" not in result:
        ours = [speed(result), "-", "-", "-"]
        done = (result["tflops"], result["tflops_with_recomputation"], result["matrix_tflops"])
        return [*ours, *rates(*done), gib(result["peak_memory_bytes"]), "-"]
    best, theirs = result["best_peer"], []
    for peer in (PLAIN, LIGER):
        found = result["peers"].get(peer, {"error": "not run"})
        theirs.append(found.get("error") or speed(found["theirs"]))
    if best is None:
        return ["-", *theirs]
    pair = result["peers"][best]
    ours, r = pair["ours"], pair["ratio"]
    ratio = f"{r['median']:.3f} ({r['min']:.3f} - {r['max']:.3f})"
    done = ours["tflops"] * (1.5 if run.checkpointing == "block" else 1.0)  # 6N for 4N
    speeds = [speed(ours), *theirs, ratio]
    peaks = [gib(pair[side]["peak_memory_bytes"]) for side in ("ours", "theirs")]
    return [*speeds, *rates(ours["tflops"], done, result["matrix_tflops"]), *peaks]


def report_row(run: Timing) -> list[str]:
    result = run.result
    assert result is not None
    most, peak = REPORT_GIB[run.rows, run.tokens], result["peak_memory_bytes"]
    speeds = rates(result["tflops"], result["tflops_with_recomputation"], None)[:2]
    others = [gib(result[f"{name}_memory_bytes"]) for name in ("reserved", "loading_peak")]
    ends = [str(result["skipped_steps"]), "yes" if peak <= most * GIB else "NO"]
    return [speed(result), *speeds, gib(peak), str(most), *others, *ends]


def table(part: str, runs: list[Timing]) -> str:
    head, row = (SPEED_HEAD, speed_row) if part == "speed" else (REPORT_HEAD, report_row)
    found = [run.cells() + (row(run) if run.error is None else [run.error]) for run in runs]
    return markdown(head, found)


def machine(runs: list[Timing]) -> str:
    """Hardware and versions, as the first sub-run that worked found them."""
    for run in runs:
        if found := run.result:
            versions = ", ".join(map(" ".join, found["packages"].items()))
            return f"{found['device']}, {found['cpu']}; CUDA {found['cuda']}, {versions}"
    return "no sub-run gave a result"


def main() -> int:
    parser = argparse.ArgumentParser(description="Times a GPU machine in one go.")
    parser.add_argument("--part", choices=("speed", "report"), required=True)
    parser.add_argument("--budget", type=float, default=540, help="seconds; then none is started")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    given = parser.parse_args()
    file = given.output if given.output.suffix == ".json" else given.output / f"{given.part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    runs = speed_runs() if given.part == "speed" else report_runs()
    started = time.monotonic()
    for run in runs:
        left = given.budget - (time.monotonic() - started)
        if left > 0:
            run.run(timeout=left + 30)
            print(run.cells(), run.seconds, run.error or "done", file=sys.stderr, flush=True)
        file.write_text(json.dumps([asdict(r) for r in runs], indent=1))
    print(f"\n{table(given.part, runs)}\n\n{machine(runs)}\n{file}")
    return 0 if any(run.error is None for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
