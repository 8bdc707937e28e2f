"""The longest row of which a GPU, or GPUs that share its tokens, end a whole step: forward,
backward, optimizer.

    python -m tests.gpu.longest --model llama-3-8b --base half --budget 540
    python -m tests.gpu.longest --ranks 2 --memory_limit_gb 24 --checkpointing host --budget 200

One row, one document, every position supervised, adapters on all seven layers. Each try is a
process of its own (with `--ranks` several) that takes one step, so that one that runs out of memory
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
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from llama.assembly.memory import OF_HOST, free_bytes
from llama.commands.benchmark.command import deepspeed_config, limit_memory
from llama.commands.benchmark.sub_run import end
from llama.fused.keeping import summary
from llama.model.config import LINEARS
from llama.model.presets import PRESETS
from llama.planning.fit import estimate
from llama.planning.job import Job, settings_of
from llama.settings import BenchmarkOptions, LoRAOptions, deepspeed_json
from tests.gpu.sub_runs import DEFAULTS, ROOT, torchrun

WHOLE = 256
"""Lengths are multiples of it: those that cuDNN's attention takes (`llama/model/attention.py`)."""
STEP, CLOSE = 1.06, 1.015
"""How much longer the next try is while none failed, and how near two lengths may come."""
ADDED = 90.0
"""Seconds of a try beside its step: weights, memory of the host, kernels."""


@dataclass(frozen=True)
class What:
    """The step whose row is made as long as it goes."""

    model: str
    base: str
    checkpointing: Any
    ranks: int
    """That share its tokens, a GPU each."""
    memory_limit_gb: float | None
    """Of each GPU."""

    def options(self, tokens: int) -> BenchmarkOptions:
        return BenchmarkOptions(
            model=f"random:{self.model}",
            batch=1,
            seq_len=tokens,
            precision="bf16",
            base=self.base,  # type: ignore[arg-type]
            checkpointing=self.checkpointing,
            compile="true",
            sequence_parallel=self.ranks,
            memory_limit_gb=self.memory_limit_gb,
            lora=LoRAOptions(targets=LINEARS),
        )

    def job(self, tokens: int) -> tuple[Job, Any]:
        """What is planned, and the resolved configuration of the run."""
        options = self.options(tokens)
        config = PRESETS[self.model]
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
            seq_len=tokens,
            checkpointing="host" if self.checkpointing == "auto" else self.checkpointing,
            fused=True,
            sequence_parallel=self.ranks,
            data_parallel=self.ranks,
            **settings_of(resolved),
        )
        return job, resolved

    def planned_start(self, on_device: int, on_host: int) -> int:
        """Tokens of the longest row that both memories hold, a GPU's and the host's: what the host
        has no room for stays on the device. Both grow in a line."""
        short, longer = 65_536, 131_072
        few, more = (self.job(n)[0] for n in (short, longer))
        used = estimate(few)
        slope = (estimate(more) - used) / (longer - short)
        left = on_device - (used - slope * short)
        inputs = few.config.n_layers * few.config.dim * few.dtype.itemsize / self.ranks
        return rounded(min(left / slope, (left + on_host) / (slope + inputs)))


def rounded(tokens: float) -> int:
    return max(1, round(tokens / WHOLE)) * WHOLE


def take_a_step(what: What, tokens: int) -> dict[str, Any]:
    """One step in this process."""
    from llama.assembly.engine import build_engine
    from llama.engine import start_processes
    from llama.launch.processes import stop_processes
    from llama.model.transformer import Transformer
    from llama.parallel.mesh import create_mesh
    from llama.planning.trace import batch_of
    from llama.weights.open_model import open_model

    options, (job, resolved) = what.options(tokens), what.job(tokens)
    began = time.perf_counter()
    device = start_processes()
    limit_memory(what.memory_limit_gb, device)
    source = open_model(options.model, device)
    mesh = create_mesh(1, what.ranks)
    engine = build_engine(source, options, resolved, mesh, device)
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


def tried(what: What, tokens: int, seconds: float) -> dict[str, Any]:
    """`take_a_step` in a process of its own, within so many seconds; where it fails, why."""
    command = [sys.executable, *(torchrun(what.ranks) if what.ranks > 1 else ())]
    command += ["-m", "tests.gpu.longest"]
    for name, value in asdict(what).items():
        command += [f"--{name}", str(value)] if value is not None else []
    # as `program` starts one
    environment = {**DEFAULTS, **os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    said: dict[str, Any] = {**asdict(what), "tokens": tokens}
    child = subprocess.Popen(
        [*command, "--one", str(tokens)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(child)
        return said | {"ended": False, "why": f"no end within {seconds:.0f} seconds"}
    if child.returncode:
        lines = [line for line in err.splitlines() if "Error" in line]
        of_ranks = [line for line in lines if "ChildFailedError" not in line]
        why = of_ranks[-1] if of_ranks else err[-1000:]
        return said | {"ended": False, "why": f"status {child.returncode}: {why[:500]}"}
    return said | {"ended": True} | json.loads(out.splitlines()[-1])


def search(what: What, start: int, budget: float) -> dict[str, Any] | None:
    """The longest that ended, within `budget` seconds."""
    until = time.monotonic() + budget
    best: dict[str, Any] | None = None
    low, high, tokens = 0, 0, rounded(start)
    while True:
        found = tried(what, tokens, until - time.monotonic())
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
    parser.add_argument("--checkpointing", choices=("auto", "host", "block"), default="auto")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the tokens")
    parser.add_argument("--memory_limit_gb", type=float, help="of each GPU")
    given = parser.parse_args()
    what = What(**{name: getattr(given, name) for name in What.__dataclass_fields__})
    if given.one:
        found = take_a_step(what, given.one)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(found), flush=True)
        return
    began = time.monotonic()
    start = given.start
    if start is None:
        on_device = torch.cuda.get_device_properties(0).total_memory
        if what.memory_limit_gb is not None:
            on_device = min(on_device, int(what.memory_limit_gb * 2**30))
        on_host = int(OF_HOST * free_bytes(torch.device("cpu"))) // what.ranks
        start = what.planned_start(on_device, on_host)
    best = search(what, start, given.budget - (time.monotonic() - began))
    print(json.dumps({"longest": best}))


if __name__ == "__main__":
    main()
