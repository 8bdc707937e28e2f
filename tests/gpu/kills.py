"""One rank killed at random under `torchrun --max_restarts`: does the run end where an
uninterrupted one ends? Runs go side by side, all or `--together` of them, and one JSON object comes
out.

    python -m tests.gpu.kills --ranks 2 --kills 5

The model has the shape of SmolLM2-135M and random weights (or is --model), in float32; its ranks
are data-parallel under ZeRO-1. Where attention adds up in any order no two runs are equal bit for
bit: a second uninterrupted one tells how far apart they then are, and LIMITS how far they may be.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from llama.commands.benchmark.sub_run import end, reason
from tests.gpu.sub_runs import ROOT, torchrun
from tests.support.tiny_runs import deepspeed_json, environment, write_json, write_rows
from tests.support.tokenizer_files import write_tokenizer_json

RESTARTABLE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Has torchrun give the ranks a store of their own at each start. By default one serves all starts,
and ranks that are started anew may read where those that have ended were, and wait for them."""
LIMITS = {"loss": 1e-3, "adapter": 1e-2}
"""Of a step's loss relative to the uninterrupted run's; of the distance between the two adapters'
B, which start at zero, relative to how far they have moved."""
TIMEOUT = 240.0
"""Seconds until a run is given up."""
SHOWN = 60
"""Lines of its log, of a run that failed."""


@dataclass(frozen=True)
class Outcome:
    """Of a run that has ended."""

    losses: dict[int, float]
    adapter: dict[str, torch.Tensor]
    resumed_from: list[int]


class Run:
    """`train` under torchrun, to be waited for; `victim` is the step after which a rank is killed,
    and that rank."""

    def __init__(self, argv: list[str], out: Path, ranks: int) -> None:
        self.out, self.victim, self._ranks = out, None, ranks
        self.error: str | None = None
        self.seconds = 0.0
        self._began = time.monotonic()
        self._log = out.with_suffix(".log").open("w")
        start = [sys.executable, *torchrun(ranks), "--max_restarts", "1"]
        train = ["launcher/train.py", *argv, "--output_dir", str(out)]
        self._child = subprocess.Popen(
            [*start, "--monitor_interval", "0.2", *train],
            **{
                "cwd": ROOT,
                "env": environment() | RESTARTABLE,
                "text": True,
                "start_new_session": True,
            },
            **{"stdout": self._log, "stderr": subprocess.STDOUT},
        )

    def kill_after(self, step: int, rank: int) -> None:
        """SIGKILL of `rank` once `step` is logged. The ranks are torchrun's children, in order."""
        file, deadline = self.out / "metrics.jsonl", time.monotonic() + TIMEOUT
        while not file.exists() or len(read_steps(file)) < step:
            if self._child.poll() is not None or time.monotonic() > deadline:
                return
            time.sleep(0.01)
        ranks = psutil.Process(self._child.pid).children()
        if len(ranks) == self._ranks:
            ranks[rank].kill()
            self.victim = (len(read_steps(file)), rank)

    def wait(self) -> str | None:
        """What went wrong, if it did."""
        try:
            status = self._child.wait(TIMEOUT)
            error = f"exit status {status}: " if status else None
        except subprocess.TimeoutExpired:
            end(self._child)
            error = f"no end after {TIMEOUT:.0f} s: "
        self._log.close()
        self.seconds = time.monotonic() - self._began
        if error is None:
            return None
        lines = Path(self._log.name).read_text().splitlines()
        print(f"{self.out.name}:", *lines[-SHOWN:], sep="\n", file=sys.stderr)
        return error + reason(lines)

    def outcome(self) -> Outcome:
        record = json.loads((self.out / "run.json").read_text())
        adapter = load_file(self.out / "adapter" / "adapter_model.safetensors")
        resumed = [entry["step"] for entry in record.get("resumed", [])]
        return Outcome(dict(read_steps(self.out / "metrics.jsonl")), adapter, resumed)


def read_steps(file: Path) -> list[tuple[int, float]]:
    """Each step logged and its loss; a line that is being written is left out."""
    lines = file.read_text().rpartition("\n")[0].splitlines()
    entries = [json.loads(line) for line in lines]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def compared(run: Outcome, reference: Outcome) -> dict[str, Any]:
    """How far a run ended from the reference."""
    if run.losses.keys() != reference.losses.keys():
        return {"agrees": False, "steps": len(run.losses)}
    loss = max(abs(run.losses[s] - value) / abs(value) for s, value in reference.losses.items())
    equal = all(torch.equal(run.adapter[name], value) for name, value in reference.adapter.items())
    moved = {name: value for name, value in reference.adapter.items() if "lora_B" in name}
    apart = {name: run.adapter[name] - value for name, value in moved.items()}
    adapter = norm(apart) / norm(moved)
    agrees = loss <= LIMITS["loss"] and adapter <= LIMITS["adapter"]  # false for NaN
    found = {"loss_deviation": loss, "adapter_deviation": adapter, "bit_for_bit": equal}
    return {"agrees": agrees, "steps": len(run.losses), **found}


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def arguments(folder: Path, model: str | None, steps: int) -> list[str]:
    """Of `train`, its files written to `folder`."""
    settings = deepspeed_json(1, 2, lr=1e-3, eps=1e-6)  # eps: above the rounding of a gradient
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_tokenizer_json(tokenizer)
    shape = ["--model", model or "random:smollm2-135m", "--tokenizer", str(tokenizer)]
    return [
        *("--deepspeed", str(write_json(folder / "settings.json", settings)), *shape),
        *("--data", str(write_rows(folder / "rows.json", 40)), "--template", "chatml"),
        *("--seq_len", "64", "--pack", "false", "--checkpointing", "none"),
        *("--epochs", str(steps), "--max_steps", str(steps)),
        *("--save_every", str(max(1, steps // 8)), "--keep", "2"),
    ]


def row(run: Run, reference: Outcome | None) -> dict[str, Any]:
    """What came of a run; the reference itself has none to compare with."""
    found: dict[str, Any] = {"run": run.out.name, "killed": run.victim, "error": run.error}
    if found["error"] is None:
        outcome = run.outcome()
        found["resumed_from"] = outcome.resumed_from
        found |= compared(outcome, reference) if reference else {}
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Runs of which a rank is killed at random.")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--kills", type=int, default=5, help="runs with one kill each")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--model", help="a folder; default: SmolLM2-135M's shape")
    parser.add_argument("--shard_base", action="store_true", help="all ranks share one base")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks")
    parser.add_argument("--together", type=int, help="runs at a time; default: all")
    given = parser.parse_args(argv)
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = arguments(folder, given.model, given.steps)
        argv += ["--shard_base", "all"] * given.shard_base
        names = ["uninterrupted", "again", *(f"kill {i + 1}" for i in range(given.kills))]
        moments = [
            (draw.randint(1, given.steps - 1), draw.randrange(given.ranks))
            for _ in range(given.kills)
        ]

        def ended(name: str, *moment: int) -> Run:
            run = Run(argv, folder / name, given.ranks)
            if moment:
                run.kill_after(*moment)
            run.error = run.wait()
            said = run.error or "ended"
            print(f"{name}: {said} after {run.seconds:.0f} s", file=sys.stderr, flush=True)
            return run

        with ThreadPoolExecutor(given.together or len(names)) as pool:
            told = [(), (), *moments]
            waited = [
                pool.submit(ended, name, *moment) for name, moment in zip(names, told, strict=True)
            ]
        first, *others = [each.result() for each in waited]
        reference = None if first.error else first.outcome()
        rows = [row(run, reference) for run in others]
        error = first.error
    done = sum(entry["killed"] is not None for entry in rows)
    agrees = error is None and done == given.kills and all(e.get("agrees") for e in rows)
    result = {"agrees": agrees, "error": error, "steps": given.steps, "limits": LIMITS}
    result["environment"] = RESTARTABLE
    print(json.dumps(result | {"ranks": given.ranks, "seed": given.seed, "runs": rows}))
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
