"""The longest row of which a GPU ends a whole step: forward, backward, optimizer.

    python -m tests.gpu.longest --model llama-3-8b --base half --budget 540

One row, one document, every position supervised, adapters on all seven layers, `--checkpointing
auto`. Each try is a process of its own that takes one step, so that one that runs out of memory
harms no other. The first length is planned; where it ends a longer one is tried, where it fails a
shorter one. Each try is a line of JSON; the last line is the longest that ended. A step of half a
million tokens takes minutes: with `--start N` a search goes on from what another call has found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, cast

import torch

from llama.assembly.memory import OF_HOST, free_bytes
from llama.commands.benchmark.command import deepspeed_config
from llama.fused.keeping import summary
from llama.model.config import LINEARS
from llama.model.presets import PRESETS
from llama.planning.fit import estimate
from llama.planning.job import Job, settings_of
from llama.settings import BenchmarkOptions, LoRAOptions, deepspeed_json
from tests.support.model_files import ROOT

WHOLE = 256
"""Lengths are multiples of it: those that cuDNN's attention takes (`llama/model/attention.py`)."""
STEP, CLOSE = 1.06, 1.015
"""How much longer the next try is while none failed, and how near two lengths may come."""
ADDED = 90.0
"""Seconds of a try beside its step: weights, memory of the host, kernels."""


def options_of(model: str, base: str, tokens: int) -> BenchmarkOptions:
    return BenchmarkOptions(
        model=f"random:{model}",
        batch=1,
        seq_len=tokens,
        precision="bf16",
        base=base,  # type: ignore[arg-type]
        checkpointing="auto",
        compile="true",
        lora=LoRAOptions(targets=LINEARS),
    )


def job_of(options: BenchmarkOptions) -> tuple[Job, Any]:
    """What is planned, and the resolved configuration of the run."""
    config = PRESETS[options.model.removeprefix("random:")]
    resolved = deepspeed_json.resolve(
        deepspeed_config(options),
        data_parallel=1,
        total_steps=1,
        width=config.dim,
        fp16_supported=True,
    )
    job = Job(
        config=config,
        lora=options.lora,
        base=options.base,
        seq_len=options.seq_len or 0,
        checkpointing="host",
        fused=True,
        **settings_of(resolved),
    )
    return job, resolved


def planned_start(model: str, base: str, on_device: int, on_host: int) -> int:
    """Tokens of the longest row that both memories hold: what the host has no room for stays on
    the device. Both grow in a line."""
    short, longer = 65_536, 131_072
    few, more = (job_of(options_of(model, base, n))[0] for n in (short, longer))
    used = estimate(few)
    slope = (estimate(more) - used) / (longer - short)
    left = on_device - (used - slope * short)
    inputs = few.config.n_layers * few.config.dim * few.dtype.itemsize
    return rounded(min(left / slope, (left + on_host) / (slope + inputs)))


def rounded(tokens: float) -> int:
    return max(1, round(tokens / WHOLE)) * WHOLE


def take_a_step(model: str, base: str, tokens: int) -> dict[str, Any]:
    """One step in this process."""
    from llama.assembly.engine import build_engine
    from llama.engine import start_processes
    from llama.launch.processes import stop_processes
    from llama.model.transformer import Transformer
    from llama.parallel.mesh import create_mesh
    from llama.planning.trace import batch_of
    from llama.weights.open_model import open_model

    options = options_of(model, base, tokens)
    job, resolved = job_of(options)
    began = time.perf_counter()
    device = start_processes()
    source = open_model(options.model, device)
    engine = build_engine(source, options, resolved, create_mesh(1), device)
    batch = batch_of(job)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started = time.perf_counter()
    loss = engine.step([batch]).loss
    torch.cuda.synchronize()
    ended = time.perf_counter()
    free, total = torch.cuda.mem_get_info()
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "seconds": ended - started,
        "seconds_before": started - began,
        "loss": loss,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "used_gib": (total - free) / 2**30,
        "kept": summary(cast(Transformer, engine.model).kept),
    }
    stop_processes()
    return found


def tried(model: str, base: str, tokens: int, seconds: float) -> dict[str, Any]:
    """`take_a_step` in a process of its own, within so many seconds; where it fails, why."""
    command = [sys.executable, "-m", "tests.gpu.longest", "--model", model, "--base", base]
    # as `program` starts one
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    said: dict[str, Any] = {"model": model, "base": base, "tokens": tokens}
    try:
        done = subprocess.run(
            [*command, "--one", str(tokens)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return said | {"ended": False, "why": f"no end within {seconds:.0f} seconds"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        why = lines[-1] if lines else done.stderr[-1000:]
        return said | {"ended": False, "why": f"status {done.returncode}: {why[:500]}"}
    return said | {"ended": True} | json.loads(done.stdout.splitlines()[-1])


def search(model: str, base: str, start: int, budget: float) -> dict[str, Any] | None:
    """The longest that ended, within `budget` seconds."""
    until = time.monotonic() + budget
    best: dict[str, Any] | None = None
    low, high, tokens = 0, 0, rounded(start)
    while True:
        found = tried(model, base, tokens, until - time.monotonic())
        print(json.dumps(found), flush=True)
        if found["ended"]:
            best, low = found, tokens
        else:
            high = tokens
        if not high:
            following = rounded(low * STEP)
        else:
            following = rounded((low + high) / 2 if low else high / STEP)
        near = bool(high) and low > 0 and high < low * CLOSE
        # Attention grows with the square of the tokens.
        needed = ADDED + (best["seconds"] * (following / low) ** 2 if best else 0.0)
        if near or following in (low, high) or time.monotonic() + needed > until:
            return best
        tokens = following


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", choices=PRESETS, default="llama-3-8b")
    parser.add_argument("--base", choices=("half", "fp8", "nf4"), default="half")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--start", type=int, help="tokens of the first try; planned by default")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(take_a_step(given.model, given.base, given.one)))
        return
    began = time.monotonic()
    start = given.start
    if start is None:
        on_device = torch.cuda.get_device_properties(0).total_memory
        on_host = int(OF_HOST * free_bytes(torch.device("cpu")))
        start = planned_start(given.model, given.base, on_device, on_host)
    best = search(given.model, given.base, start, given.budget - (time.monotonic() - began))
    print(json.dumps({"longest": best}))


if __name__ == "__main__":
    main()
