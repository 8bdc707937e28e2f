"""Ours and transformers + PEFT on one CUDA device, all shapes and placements in one process: built
once a model, so that a table costs minutes.

    python -m tests.gpu.side_by_side --profile 2x4096:none

Ours (compiled) and each peer take turns, pair by pair, as in tests/support/peer_benchmark.py, whose
sides and checks these are. What was measured goes to side_by_side.json (in $OUT, or --output),
written anew after each case; a markdown table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import torch

from llama.assembly.memory import keep_what_fits
from llama.commands.benchmark import command as own
from llama.commands.benchmark.report import spread
from llama.engine import start_processes
from llama.fused.keeping import summary
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.metrics.speed import step_flops
from llama.model.kept import KEPT, Kept
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh, create_mesh
from tests.support.peer_benchmark import (
    LOSS_TOLERANCE,
    Facts,
    Measured,
    Ours,
    PeerOptions,
    Ready,
    Theirs,
    _free,
    make_work,
)

GIB = 2**30
PEERS = {"HF+PEFT": "bf16-adapters", "+liger": "bf16-adapters+liger"}


class Case:
    """One shape and placement of one model."""

    def __init__(self, model: str, shape: str, mode: str, mesh: Mesh) -> None:
        rows, tokens = map(int, shape.split("x"))
        self.name, self.mode = (model, f"{rows} x {tokens}", mode), mode
        self.options = PeerOptions(
            model=f"random:{model}", batch=rows, seq_len=tokens, precision="bf16", compile="true",
            checkpointing=mode if mode in KEPT else "none",  # type: ignore[arg-type]
        )  # fmt: skip
        self.job = own.read_job(self.options)
        self.resolved = own.resolve(self.job, mesh)
        self.work = make_work(self.job, self.resolved, mesh, self.options)
        self.result: dict[str, Any] = {"case": self.name}

    @property
    def cap(self) -> float | None:
        """GiB that the process may take, of a mode as `auto@40`."""
        return float(self.mode.partition("@")[2]) if self.mode.startswith("auto@") else None

    def place(self, side: Any) -> None:
        """Put `side`, built for another case of this model, into this one's mode."""
        if isinstance(side, Ours):
            model, device = cast(Transformer, side.engine.model), side.engine.device
            if self.cap:
                _free()
                own.limit_memory(self.cap, device)
                shape = self.resolved.micro_batch, self.job.row_length
                to_come = side.engine.step_bytes()
                keep_what_fits(model, *shape, side.engine.mesh, device, to_come)
                self.result["kept"] = summary(model.kept)
            else:
                named: dict[str, Kept] = {**KEPT, **{k.name.lower(): k for k in Kept}}
                kept = named[self.mode]
                model.keep([kept] * len(model.layers))
        elif self.mode == "block":
            side.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            side.model.gradient_checkpointing_disable()

    def windows(self, side: Any) -> Any:
        return self.work.ours if isinstance(side, Ours) else self.work.theirs


def measured(ready: Ready, device: torch.device) -> Measured:
    """One step, after one of the same kind: the other side's memory was given back in between."""
    other = torch.cuda.memory_allocated() - ready.held
    _free()
    for window in ready.windows:
        ready.side.step(window)
    torch.cuda.reset_peak_memory_stats()
    _, seconds = own.timed(device, lambda: [ready.side.step(w) for w in ready.windows])
    return Measured(seconds, torch.cuda.max_memory_allocated() - other)


def check_same(theirs: Any, start: Facts, case: Case) -> None:
    """Both begin at one loss (`start`: ours, before it was trained) and train as much."""
    loss = theirs.loss(case.work.examples)
    apart = abs(loss - start.loss) / start.loss
    if apart > LOSS_TOLERANCE["bf16"] or theirs.trainable != start.trainable:
        raise RuntimeError(f"not the same: ours {start}, theirs {loss}, {theirs.trainable}")


def compare(case: Case, ours: Any, theirs: Any, name: str, given: Any, device: Any) -> None:
    """Time pairs of the two; the result goes into `case`."""
    sides = []
    for side, held in filter(None, (ours, theirs)):
        case.place(side)
        sides.append(Ready(side, case.windows(side), Facts(side.trainable, 0.0), held))
    pairs = [[measured(side, device) for side in sides] for _ in range(given.pairs)]
    flops = step_flops(case.job.source.config, case.work.tokens, case.work.supervised)
    found: dict[str, Any] = {}
    for index, who in enumerate(("ours", "theirs")[: len(sides)]):
        seconds = [pair[index].seconds for pair in pairs]
        found[who] = {
            "tokens_per_second": spread([case.work.tokens / s for s in seconds]),
            "tflops": flops / sorted(seconds)[len(seconds) // 2] / 1e12,
            "peak_memory_bytes": max(pair[index].peak for pair in pairs),
        }
    if theirs:
        found["ratio"] = spread([pair[1].seconds / pair[0].seconds for pair in pairs])
    case.result[name] = found
    print(*case.name, name, json.dumps(found), file=sys.stderr, flush=True)


def profile(case: Case, ours: Any, device: torch.device) -> dict[str, Any]:
    """Kernel times of one step by name, in ms, and how long the device had nothing to do."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
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
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
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


def within(cases: list[Case], case: Case) -> dict[str, Any] | None:
    """The fastest peer's result for a capped case's model and shape that its cap would hold."""
    found = [
        (other.result[p]["theirs"]["tokens_per_second"]["median"], other.result[p]["theirs"])
        for other in cases
        for p in PEERS
        if other.name[:2] == case.name[:2] and p in other.result
        and other.result[p]["theirs"]["peak_memory_bytes"] <= case.cap * GIB  # type: ignore[operator]
    ]  # fmt: skip
    return max(found, key=lambda pair: pair[0])[1] if found else None


HEAD = [
    *("model", "batch", "checkpointing", "ours tok/s", *(f"{p} tok/s" for p in PEERS)),
    *("ours / best (min - max)", "share of matrix rate (4N)", "peak GiB ours", "best peer"),
]


def row(cases: list[Case], case: Case, matrix: float | None) -> list[str] | None:
    found = {p: case.result[p] for p in PEERS if p in case.result}
    pairs = sorted(found.values(), key=lambda f: f["theirs"]["tokens_per_second"]["median"])
    best = pairs[-1] if pairs else case.result.get("alone")
    if best is None:
        return None
    ours, theirs, ratio = best["ours"], best.get("theirs"), "-"
    if spread_of := best.get("ratio"):
        ratio = f"{spread_of['median']:.3f} ({spread_of['min']:.3f} - {spread_of['max']:.3f})"
    elif case.cap and (theirs := within(cases, case)):
        medians = [side["tokens_per_second"]["median"] for side in (ours, theirs)]
        ratio = f"{medians[0] / medians[1]:.3f}"
    speeds = [
        f"{found[p]['theirs']['tokens_per_second']['median']:,.0f}" if p in found else "-"
        for p in PEERS
    ]
    share = f"{ours['tflops'] * 1e12 / matrix:.1%}" if matrix else "-"
    peaks = [f"{s['peak_memory_bytes'] / GIB:.2f}" if s else "-" for s in (ours, theirs)]
    speed = f"{ours['tokens_per_second']['median']:,.0f}"
    return [*case.name, speed, *speeds, ratio, share, *peaks]


def table(cases: list[Case], matrix: float | None) -> str:
    rows = filter(None, (row(cases, case, matrix) for case in cases))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows))


class Session:
    """One call of this script: its cases, and what is written of them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.started = given, time.monotonic()
        self.device = start_processes()
        self.mesh = create_mesh(1)
        self.matrix = own.matrix_rate(self.device)
        self.cases: list[Case] = []
        self.profiles: list[dict[str, Any]] = []

    def write(self) -> None:
        document = {
            "matrix_tflops": self.matrix and self.matrix / 1e12,
            "cases": [case.result for case in self.cases],
            "profiles": self.profiles,
            **own.machine(self.device),
        }
        file = self.given.output / "side_by_side.json"
        file.write_text(json.dumps(document, indent=1))

    def left(self) -> bool:
        """Whether there is time for another case; keeps what is there."""
        self.write()
        return time.monotonic() - self.started < self.given.budget

    def say(self, what: str) -> None:
        print(f"{what}: {time.monotonic() - self.started:.0f} s", file=sys.stderr, flush=True)

    def of(self, model: str, modes: str) -> list[Case]:
        made = [
            Case(model, shape, mode, self.mesh)
            for shape in self.given.shapes.split(",")
            for mode in filter(None, modes.split(","))
        ]
        self.cases += made
        return made

    def run(self, model: str) -> None:
        beside, alone = self.of(model, self.given.modes), self.of(model, self.given.alone)
        before, first = torch.cuda.memory_allocated(), beside[0]
        ours = Ours(first.job, first.resolved, self.mesh, self.device)
        start = Facts(ours.trainable, ours.loss(first.work.examples))
        for window in first.work.ours * 2:  # compile, and make the optimizer's states
            ours.step(window)
        held = torch.cuda.memory_allocated() - before
        self.say(f"ours of {model}")
        for case in alone:
            if self.left():
                self._alone(case, ours, held)
        for wanted in filter(None, self.given.profile.split(",")):
            if self.left():
                case = Case(model, *wanted.split(":", 1), self.mesh)  # type: ignore[call-arg]
                self.profiles.append(profile(case, ours, self.device))
        for peer in filter(None, self.given.peers.split(",")):
            self._beside(peer, beside, ours, held, start)
        ours.release()

    def _alone(self, case: Case, ours: Ours, held: int) -> None:
        try:
            compare(case, (ours, held), None, "alone", self.given, self.device)
        except torch.OutOfMemoryError as error:
            case.result["error"] = str(error).splitlines()[0]
        torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _beside(self, peer: str, cases: list[Case], ours: Ours, held: int, start: Facts) -> None:
        _free()
        before, first = torch.cuda.memory_allocated(), cases[0]
        theirs = Theirs(PEERS[peer].split("+"), first.job, first.resolved, self.device)
        check_same(theirs, start, first)
        theirs.step(first.work.theirs[0])
        their_held = torch.cuda.memory_allocated() - before
        self.say(f"built {peer}")
        for case in cases:
            if self.left():
                sides = (ours, held), (theirs, their_held)
                compare(case, *sides, peer, self.given, self.device)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ours and its peers, all cases in one process.")
    parser.add_argument("--model", default="llama-7b,llama-3-8b")
    parser.add_argument("--shapes", default="2x4096,4x1024")
    parser.add_argument("--modes", default="none,block", help="beside the peers")
    parser.add_argument(
        "--alone", default="ffn", help="more placements of ours; Kept's names; auto@GIB, capped"
    )
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--profile", default="", help="SHAPE:MODE, ...")
    parser.add_argument("--budget", type=float, default=540, help="seconds; then nothing is begun")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    session = Session(parser.parse_args())
    for model in session.given.model.split(","):
        session.run(model)
        _free()
    session.write()
    machine = json.dumps(own.machine(session.device))
    rate = f"matrix rate {(session.matrix or 0) / 1e12:.1f} TFLOP/s"
    print(f"\n{table(session.cases, session.matrix)}\n\n{rate}; {machine}")
    session.say("done")
    stop_processes()
    return 0


if __name__ == "__main__":
    run_program(main)
