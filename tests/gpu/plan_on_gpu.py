"""The plan of a step against what a GPU shows: 15 configurations, each in a fresh process.

    python -m tests.gpu.plan_on_gpu OUT.json

Each process builds the engine as `benchmark` does, takes eight steps and tells the most that was
allocated, what the driver shows as used, and the median of the last five steps' seconds. The plan
is made beside it, on the CPU. OUT.json is written anew after each; a table comes last.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llama.commands.benchmark.command import deepspeed_config, limit_memory, reset_peak
from llama.metrics.hardware import GPUS
from llama.model.config import LINEARS
from llama.model.kept import Checkpointing, Kept
from llama.model.presets import PRESETS
from llama.planning.job import Job, settings_of
from llama.planning.memory import Memory, memory
from llama.planning.time import Place, step_time
from llama.settings import BenchmarkOptions, LoRAOptions, deepspeed_json
from tests.support.model_files import ROOT

GIB = 2**30
STEPS = 8
QUANTITIES = (("allocated", GIB, 0.05), ("used", GIB, 0.07), ("seconds", 1e-3, 0.15))
"""What is planned, the unit that is printed, and the most that a plan may deviate."""
CARD = GPUS["h100-80gb"]
"""The GPU that the constants of llama/planning/time.py were fitted to."""
PACKED = (1500, 300, 1000, 700, 596)
"""Documents of one row of 4,096 tokens."""


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    rows: int
    length: int
    checkpointing: Checkpointing
    compile: bool = False
    every: bool = False
    """Adapters on all linear layers."""
    packed: bool = False
    cap: float | None = None
    """GiB that tensors may take."""

    @property
    def name(self) -> str:
        parts = [self.model, f"{self.rows} x {self.length}", self.checkpointing]
        parts += ["fused"] * self.compile + ["all"] * self.every + ["packed"] * self.packed
        return " ".join(parts + ([f"cap {self.cap:g}"] if self.cap else []))

    @property
    def options(self) -> BenchmarkOptions:
        return BenchmarkOptions(
            model=f"random:{self.model}",
            batch=self.rows,
            seq_len=self.length,
            precision="bf16",
            checkpointing=self.checkpointing,
            compile="true" if self.compile else "false",
            lora=LoRAOptions(targets=LINEARS) if self.every else LoRAOptions(),
            memory_limit_gb=self.cap,
        )

    def resolved(self) -> Any:
        return deepspeed_json.resolve(
            deepspeed_config(self.options),
            data_parallel=1,
            total_steps=STEPS,
            width=PRESETS[self.model].dim,
            fp16_supported=True,
        )

    def job(self, kept: tuple[Kept, ...] | None) -> Job:
        """What is planned; `kept`: what the blocks of the run keep."""
        return Job(
            config=PRESETS[self.model],
            lora=self.options.lora,
            seq_len=self.length,
            documents=PACKED * self.rows if self.packed else None,
            checkpointing=kept or self.checkpointing,
            fused=self.compile,
            **settings_of(self.resolved()),
        )


ONE, SEVEN, EIGHT = "llama-3.2-1b", "llama-7b", "llama-3.1-8b"
CASES = {
    case.name: case
    for case in (
        Case(ONE, 4, 1024, "none"),
        Case(ONE, 4, 1024, "ffn", compile=True, every=True),
        Case(ONE, 4, 2048, "block"),
        Case(ONE, 4, 1024, "none", compile=True),
        Case(ONE, 2, 4096, "none", packed=True),
        Case(ONE, 2, 4096, "block", compile=True, packed=True),
        Case(SEVEN, 1, 2048, "block", compile=True),
        Case(SEVEN, 4, 2048, "block"),
        Case(SEVEN, 1, 2048, "ffn"),
        Case(SEVEN, 2, 2048, "none", compile=True),
        Case(SEVEN, 4, 1024, "auto", compile=True, cap=20),
        Case(SEVEN, 4, 1024, "auto", compile=True, cap=24),
        Case(EIGHT, 2, 4096, "block", every=True),
        Case(EIGHT, 2, 4096, "none", compile=True, every=True),
        Case(EIGHT, 2, 4096, "block", compile=True, every=True),
    )
}


def take_steps(case: Case) -> dict[str, Any]:
    """What the steps of `case` took, in this process."""
    import torch

    from llama.assembly.engine import build_engine
    from llama.engine import start_processes
    from llama.launch.processes import stop_processes
    from llama.model.transformer import Transformer
    from llama.parallel.mesh import create_mesh
    from llama.planning.trace import batch_of
    from llama.weights.open_model import open_model

    device = start_processes()
    limit_memory(case.cap, device)
    source = open_model(case.options.model, device)
    engine = build_engine(source, case.options, case.resolved(), create_mesh(1), device)
    reset_peak(device)
    held, batch, seconds = torch.cuda.memory_allocated(), batch_of(case.job(None)), []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        engine.step([batch])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    free, total = torch.cuda.mem_get_info()
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "held": held,
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "used": total - free,
        "seconds": statistics.median(seconds[3:]),
        "all_seconds": seconds,
        "kept": list(map(int, cast(Transformer, engine.model).kept)),
    }
    stop_processes()
    return found


def used_by_others() -> int:
    """Bytes of the device that the driver shows as used while no process of ours runs."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) * 2**20


def measured(name: str) -> dict[str, Any]:
    """`take_steps` in a process of its own; where it fails, the end of what it said."""
    command = [sys.executable, "-m", "tests.gpu.plan_on_gpu", "--one", name]
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # as `program` starts one
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"failed": "\n".join(said) or done.stderr[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])


def compared(case: Case) -> dict[str, Any]:
    """One line of the result."""
    others = used_by_others()
    found = measured(case.name)
    if "failed" in found:
        return found
    found["used"] -= others
    job = case.job(tuple(map(Kept, found["kept"])))
    plan: Memory = memory(job)
    seconds = step_time(job, Place(CARD)).total
    terms = {term.name: term.bytes for term in (*plan.terms, *plan.beside)}
    return {
        **found,
        "planned": {"allocated": plan.peak_bytes, "used": plan.used_bytes, "seconds": seconds}
        | {"terms": terms},
        "deviation": {
            "allocated": plan.peak_bytes / found["allocated"] - 1,
            "used": plan.used_bytes / found["used"] - 1,
            "seconds": seconds / found["seconds"] - 1,
        },
    }


def line(name: str, result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"{name:50} failed: {result['failed'].strip().splitlines()[-1][:100]}"
    columns = [f"{name:50}"]
    for what, unit, most in QUANTITIES:
        deviation = result["deviation"][what]
        mark = " " if abs(deviation) <= most else "!"
        sizes = result["planned"][what] / unit, result[what] / unit
        columns.append("{:7.2f} {:7.2f} {:+6.1%}{}".format(*sizes, deviation, mark))
    between = (result["reserved"] - result["allocated"]) / GIB
    return " ".join([*columns, f"{between:6.2f}"])


def main(out: Path) -> None:
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        results[name] = compared(case)
        out.write_text(json.dumps(results, indent=1))
        print(line(name, results[name]), flush=True)
    heads = ("GiB: allocated planned, measured", "used", "ms: a step", "GiB: reserved beyond")
    print("; ".join(heads))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(take_steps(CASES[sys.argv[2]])))
    else:
        main(Path(sys.argv[1]))
