"""What communication costs a training step, from a profile: each DeepSpeed JSON given is timed and
then profiled on the same ranks, and one JSON object comes out.

    python -m torch.distributed.run --nproc_per_node 2 -m tests.gpu.communication \
        --files a.json,b.json -- --model random:llama-7b --seq_len 4096 --steps 5

What follows `--` is `launcher/benchmark.py`'s. A collective's kernel runs from when its own rank
comes to it until the data is there, so waiting for a slower rank counts; the part of it in which no
other kernel runs is what the step loses. On CPU there are no kernels: there the time between a
collective's start and its end is all that is told.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from llama.assembly.engine import build_engine
from llama.commands.benchmark.command import (
    describe,
    epochs,
    read_job,
    resolve,
    timed,
)
from llama.commands.benchmark.report import speed
from llama.data.batches import first_windows
from llama.data.types import Batch
from llama.engine import Engine, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import BenchmarkOptions
from llama.settings.options import parse

PROFILED = 2
"""Steps in the profile, after those that are timed without it."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spent:
    """Milliseconds of one step on one rank."""

    communication: float
    """In which a collective ran."""
    exposed: float | None
    """Of those, in which nothing else ran; None where that cannot be told."""
    computation: float | None
    """In which something else ran."""
    collectives: float
    """Their number."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points of time in intervals that do not overlap, in order."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(stop - start for start, stop in union(intervals))


def spent(trace: list[dict[str, Any]], steps: int, device_type: str) -> Spent:
    """From the events of a Chrome trace, whose times are in microseconds."""
    on_device = {"kernel", "gpu_memcpy", "gpu_memset"}
    collectives: list[Interval] = []
    others: list[Interval] = []
    for event in trace:
        if event.get("ph") != "X":
            continue
        interval = (event["ts"], event["ts"] + event["dur"])
        if device_type == "cpu" and event["name"].startswith("gloo:"):
            collectives.append(interval)
        elif event.get("cat") in on_device:
            (collectives if "nccl" in event["name"].lower() else others).append(interval)
    unit, count = 1000 * steps, len(collectives) / steps
    if device_type == "cpu":
        return Spent(length(collectives) / unit, None, None, count)
    computed = length(others)
    exposed = length(collectives + others) - computed
    return Spent(length(collectives) / unit, exposed / unit, computed / unit, count)


def profiled(engine: Engine, windows: list[list[Batch]], device: torch.device) -> Spent:
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    dist.barrier()
    with profile(activities=[activity]) as profiler:
        timed(device, lambda: [engine.step(window) for window in windows])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    return spent(trace, len(windows), device.type)


def measured(options: BenchmarkOptions, mesh: Mesh, device: torch.device) -> dict[str, Any]:
    """One DeepSpeed JSON: steps timed without the profiler, then others with it."""
    job = read_job(options)
    resolved = resolve(job, mesh)
    number = options.warmup + options.steps + PROFILED
    windows = first_windows(epochs(job, resolved, mesh, number), number)
    engine = build_engine(job.source, options, resolved, mesh, device)
    results = [timed(device, lambda w=window: engine.step(w)) for window in windows[:-PROFILED]]
    steps, seconds = zip(*results[options.warmup :], strict=True)
    of_ranks: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(of_ranks, vars(profiled(engine, windows[-PROFILED:], device)))
    engine.close()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "file": str(options.deepspeed),
        **speed(steps, seconds),
        "milliseconds_per_step": of_ranks,
        **describe(job, resolved, mesh, device),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What communication costs a training step.")
    parser.add_argument("--files", required=True, help="DeepSpeed JSONs, commas between them")
    parser.add_argument("benchmark", nargs="*", help="options of launcher/benchmark.py")
    given = parser.parse_args(argv)
    options = parse(BenchmarkOptions, given.benchmark, "communication.py", "")
    device = start_processes()
    mesh = create_mesh(options.tensor_parallel)
    files = [Path(name) for name in given.files.split(",")]
    cases = [measured(replace(options, deepspeed=file), mesh, device) for file in files]
    stop_processes()
    if mesh.is_main:
        print(json.dumps({"cases": cases}))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
