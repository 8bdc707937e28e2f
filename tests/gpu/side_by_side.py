"""Ours and transformers + PEFT on one CUDA device, all shapes and placements in one process: built
once a model, so that a table costs minutes.

    PYTHONPATH=.:tests python tests/gpu/side_by_side.py --profile 2x4096:none

Ours (compiled) and each peer take turns, pair by pair, as in tests/peer_benchmark.py, whose sides
and checks these are. What was measured goes to side_by_side.json (in $OUT, or --output), written
anew after each case; a markdown table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from peer_benchmark import Facts, Measured, Ours, PeerOptions, Ready, Theirs, _free, make_work

from llama import benchmark as own
from llama.benchmark_report import spread
from llama.metrics import step_flops
from llama.model.fused_block import Kept
from llama.model.transformer import KEPT
from llama.parallel.mesh import Mesh, create_mesh
from llama.train import engine as processes

GIB = 2**30
PEERS = {"HF+PEFT": "bf16-adapters", "+liger": "bf16-adapters+liger"}


class Case:
    """One shape and placement of one model."""

    def __init__(self, model: str, shape: str, mode: str, mesh: Mesh) -> None:
        rows, tokens = map(int, shape.split("x"))
        self.name, self.mode = (model, f"{rows} x {tokens}", mode), mode
        self.options = PeerOptions(
            model=f"random:{model}", batch=rows, seq_len=tokens, precision="bf16", compile=True,
            checkpointing=mode if mode in KEPT else "none",
        )  # fmt: skip
        self.job = own.read_job(self.options)
        self.resolved = own.resolve(self.job, mesh)
        self.work = make_work(self.job, self.resolved, mesh, self.options)
        self.result: dict[str, Any] = {"case": self.name}

    def place(self, side: Any) -> None:
        """Put `side`, built for another case of this model, into this one's mode."""
        if isinstance(side, Ours):
            kept = KEPT.get(self.mode) if self.mode in KEPT else Kept[self.mode.upper()]
            for block in side.engine.model.layers:  # type: ignore[union-attr]
                block.kept = kept
        elif self.mode == "block":
            side.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            side.model.gradient_checkpointing_disable()

    def windows(self, side: Any) -> Any:
        return self.work.ours if isinstance(side, Ours) else self.work.theirs


def measured(ready: Ready, device: torch.device) -> Measured:
    other = torch.cuda.memory_allocated() - ready.held
    torch.cuda.reset_peak_memory_stats()
    _, seconds = own.timed(device, lambda: [ready.side.step(w) for w in ready.windows])
    return Measured(seconds, torch.cuda.max_memory_allocated() - other)


def ready(case: Case, side: Any, held: int, warmup: int) -> Ready:
    case.place(side)
    facts = Facts(side.trainable, side.loss(case.work.examples))
    for window in [*case.windows(side)] * warmup:
        side.step(window)
    return Ready(side, case.windows(side), facts, held)


def compare(case: Case, ours: Any, theirs: Any, name: str, given: Any, device: Any) -> None:
    """Time pairs of the two; the result goes into `case`."""
    sides = [ready(case, *side, given.warmup) for side in (ours, theirs) if side]
    pairs = [[measured(side, device) for side in sides] for _ in range(given.pairs)]
    flops = step_flops(case.job.source.config, case.work.tokens, case.work.supervised)
    found: dict[str, Any] = {}
    for index, who in enumerate(("ours", "theirs")[: len(sides)]):
        seconds = [pair[index].seconds for pair in pairs]
        found[who] = {
            "tokens_per_second": spread([case.work.tokens / s for s in seconds]),
            "tflops": flops / sorted(seconds)[len(seconds) // 2] / 1e12,
            "peak_memory_bytes": max(pair[index].peak for pair in pairs),
            "loss": sides[index].facts.loss,
        }
    if theirs:
        found["ratio"] = spread([pair[1].seconds / pair[0].seconds for pair in pairs])
    case.result[name] = found
    print(*case.name, name, json.dumps(found), file=sys.stderr, flush=True)


def profile(case: Case, ours: Any, device: torch.device) -> dict[str, Any]:
    """Kernel times of one step by name, in ms, and how long the device had nothing to do."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    case.place(ours)
    for _ in range(2):
        ours.step(case.work.ours[0])
    _, seconds = own.timed(device, lambda: ours.step(case.work.ours[0]))
    with profiled(activities=[ProfilerActivity.CUDA]) as trace:
        own.timed(device, lambda: ours.step(case.work.ours[0]))
    spans, total = [], defaultdict(lambda: [0.0, 0])
    for event in trace.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            start, end = event.time_range.start, event.time_range.end
            spans.append((start, end))
            total[event.name][0] += (end - start) / 1e3
            total[event.name][1] += 1
    spans.sort()
    busy, gaps, until = 0.0, [], spans[0][0]
    for start, end in spans:
        if start > until:
            gaps.append(((start - until) / 1e3, (until - spans[0][0]) / 1e3))
        busy += max(0.0, end - max(start, until)) / 1e3
        until = max(until, end)
    kernels = sorted(((ms, n, name) for name, (ms, n) in total.items()), reverse=True)
    print(
        f"\nprofile {case.name}: {seconds * 1e3:.1f} ms unprofiled; busy {busy:.1f}, span "
        f"{(until - spans[0][0]) / 1e3:.1f}; gaps (ms @ at) {sorted(gaps, reverse=True)[:8]}"
    )
    for ms, n, name in kernels[:28]:
        print(f"{ms:9.2f} {n:5d} {ms / n * 1e3:8.1f} us  {name[:100]}")
    return {"seconds": seconds, "busy_ms": busy, "kernels": kernels[:80]}


def table(cases: list[Case], matrix: float | None) -> str:
    head = [
        "model",
        "batch",
        "checkpointing",
        "ours tok/s",
        *(f"{p} tok/s" for p in PEERS),
        "ours / best (min - max)",
        "share of matrix rate (4N)",
        "peak GiB ours",
        "best peer",
    ]
    lines = [head, ["---"] * len(head)]
    for case in cases:
        found = {p: case.result[p] for p in PEERS if p in case.result}
        best = max(
            found.values(),
            key=lambda f: f["theirs"]["tokens_per_second"]["median"],
            default=case.result.get("alone"),
        )
        if best is None:
            continue
        speeds = [
            f"{found[p]['theirs']['tokens_per_second']['median']:,.0f}" if p in found else "-"
            for p in PEERS
        ]
        ours, r = best["ours"], best.get("ratio")
        share = f"{ours['tflops'] * 1e12 / matrix:.1%}" if matrix else "-"
        peaks = [
            f"{best[s]['peak_memory_bytes'] / GIB:.2f}" if s in best else "-"
            for s in ("ours", "theirs")
        ]
        ratio = f"{r['median']:.3f} ({r['min']:.3f} - {r['max']:.3f})" if r else "-"
        lines.append(
            [
                *case.name,
                f"{ours['tokens_per_second']['median']:,.0f}",
                *speeds,
                ratio,
                share,
                *peaks,
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ours and its peers, all cases in one process.")
    parser.add_argument("--model", default="llama-7b,llama-3-8b")
    parser.add_argument("--shapes", default="2x4096,4x1024")
    parser.add_argument("--modes", default="none,block", help="beside the peers")
    parser.add_argument("--alone", default="ffn", help="more placements of ours, or Kept's names")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--profile", default="", help="SHAPE:MODE, ...")
    parser.add_argument("--budget", type=float, default=540, help="seconds; then nothing is begun")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    given = parser.parse_args()
    started = time.monotonic()
    device = processes.start_processes()
    mesh, cases, profiles = create_mesh(1), [], []
    matrix = own.matrix_rate(device)

    def left() -> bool:
        (given.output / "side_by_side.json").write_text(
            json.dumps(
                {
                    "matrix_tflops": matrix and matrix / 1e12,
                    "cases": [c.result for c in cases],
                    "profiles": profiles,
                    **own.machine(device),
                },
                indent=1,
            )
        )
        return time.monotonic() - started < given.budget

    for model in given.model.split(","):
        mine = [
            Case(model, shape, mode, mesh)
            for shape in given.shapes.split(",")
            for mode in filter(None, given.modes.split(","))
        ]
        alone = [
            Case(model, shape, mode, mesh)
            for shape in given.shapes.split(",")
            for mode in filter(None, given.alone.split(","))
        ]
        cases += mine + alone
        before = torch.cuda.memory_allocated()
        ours = Ours(mine[0].job, mine[0].resolved, mesh, device)
        held = torch.cuda.memory_allocated() - before
        print(f"built {model} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for case in alone:
            if left():
                compare(case, (ours, held), None, "alone", given, device)
        for wanted in filter(None, given.profile.split(",")):
            if left():
                profiles.append(profile(Case(model, *wanted.split(":"), mesh), ours, device))
        for peer in filter(None, given.peers.split(",")):
            before = torch.cuda.memory_allocated()
            theirs = Theirs(PEERS[peer].split("+"), mine[0].job, mine[0].resolved, device)
            their_held = torch.cuda.memory_allocated() - before
            print(f"built {peer} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            for case in mine:
                if left():
                    compare(case, (ours, held), (theirs, their_held), peer, given, device)
                _free()
            del theirs
            _free()
        ours.release()
        del ours
        _free()
    left()
    print(
        f"\n{table(cases, matrix)}\n\nmatrix rate {matrix and matrix / 1e12:.1f} TFLOP/s; "
        f"{json.dumps(own.machine(device))}; {time.monotonic() - started:.0f} s"
    )
    processes.stop_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
