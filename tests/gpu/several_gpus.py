"""Several GPUs of one host, measured in one go, from the project's root:

    python -m tests.gpu.several_gpus --gpus 2 --budget 540
    python -m tests.gpu.several_gpus --gpus 8 --part verify,kills

verify         every topology and ZeRO stage over NCCL against one process
speed          7B, bf16, 2 x 4096: tokens/s and memory, data-parallel (base whole and sharded),
               tensor-parallel, ZeRO-3
large          70B: tensor-parallel and ZeRO-3 over all GPUs, where the cards have the memory
kills          a rank killed at random under torchrun, five times
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama.commands.benchmark.sub_run import GIB
from tests.gpu.several_tables import Measure, tables
from tests.gpu.sub_runs import DEFAULTS, ROOT, torchrun
from tests.support.tiny_runs import write_json, write_model

SHIPPED = {1: "lora_bf16", 2: "lora_zero2", 3: "lora_zero3"}
"""ZeRO stage to the file of ds_configs/ that it is taken from."""
TOGETHER = {"verify": 3}
"""Sub-runs of a part that may share the GPUs: those that are not timed."""
BEYOND = 30.0
"""Seconds that the last sub-run may take beyond the budget."""
ROOM_GIB = 4.0
"""Of each GPU, for CUDA, NCCL, the loss and the gaps between allocations."""
USABLE = 0.97
"""Of a card's memory."""


@dataclass(frozen=True)
class Plan:
    """What is measured, on how many GPUs."""

    gpus: int
    folder: Path
    """Of the DeepSpeed JSONs that are written."""
    memory: float | None = None
    """Bytes of one GPU."""
    model: str = "random:llama-7b"
    large: str = "llama-2-70b"
    rows: int = 2
    tokens: int = 4096
    timing: str = "--warmup 2 --steps 5"
    kills: str = "--kills 5"
    tiny: bool = False

    def degrees(self) -> list[int]:
        """Powers of two up to the number of GPUs."""
        return [2**i for i in range(self.gpus.bit_length()) if 2**i <= self.gpus]

    def settings(
        self, stage: int, rows: int, accumulation: int, overlap: bool | None = None
    ) -> str:
        """The path of a shipped file made bf16 and given these sizes."""
        document = json.loads((ROOT / f"ds_configs/{SHIPPED[stage]}.json").read_text())
        document.pop("fp16", None)
        document["bf16"] = {"enabled": True}
        document["train_micro_batch_size_per_gpu"] = rows
        document["gradient_accumulation_steps"] = accumulation
        name = f"zero{stage}-{rows}x{accumulation}"
        if overlap is not None:
            document["zero_optimization"]["overlap_comm"] = overlap
            name += "-overlap" if overlap else "-no-overlap"
        return str(write_json(self.folder / f"{name}.json", document))


def verify_runs(plan: Plan) -> Iterator[Measure]:
    """The widths of the 7B model at one layer, at a few over a sharded base; and every stage and
    accumulation at tiny widths, all of a topology in one start."""
    case = f"--model {plan.model} --json".split()

    def proof(degree: int, stage: int, *more: str) -> Measure:
        file = plan.settings(stage, 1, 2)
        options = ["--deepspeed", file, "--tensor_parallel", str(degree), *case, *more]
        topology = f"TP {degree} x DP {plan.gpus // degree}"
        command = [*torchrun(plan.gpus), "launcher/verify.py", *options]
        name = f"{topology}, ZeRO-{stage}{', base sharded' * ('--shard_base' in more)}"
        return Measure("verify", name, plan.gpus, limit=150, command=command)

    degrees = plan.degrees()[::-1]
    one = ("--layers", "1")
    yield from (proof(degree, 1, *one) for degree in degrees)
    yield from (proof(1, stage, *one) for stage in (2, 3))
    yield proof(1, 1, "--shard_base", "--layers", "5")  # more than there are rooms for
    for degree in degrees:
        if degree <= 4:  # the tiny model has 4 key/value heads
            options = f"--tensor_parallel {degree} --checkpointing block".split()
            command = [*torchrun(plan.gpus), "-m", "tests.parity.topologies", *options]
            name = f"TP {degree} x DP {plan.gpus // degree}, ZeRO 0-3, tiny"
            yield Measure("verify", name, plan.gpus, limit=240, command=command)


def speed_runs(plan: Plan) -> Iterator[Measure]:
    """The ends first, then what lies between."""
    fixed = f"--seq_len {plan.tokens} --checkpointing block {plan.timing} --json".split()

    def timing(placement: str, count: int) -> Measure:
        options = ["--model", plan.model, *fixed]
        if placement == "ZeRO-3":
            options += ["--deepspeed", plan.settings(3, plan.rows, 1)]
        else:
            options += ["--batch", str(plan.rows), "--precision", "bf16"]
        if placement == "TP":
            options += ["--tensor_parallel", str(count)]
        elif placement == "DP, base sharded":
            options.append("--shard_base")
        command = [*torchrun(count), "launcher/benchmark.py", *options]
        return Measure("speed", placement, count, limit=150, command=command)

    yield from (timing("DP", count) for count in dict.fromkeys((1, plan.gpus)))
    placements = ("TP", "ZeRO-3", "DP, base sharded")
    yield from (timing(placement, plan.gpus) for placement in placements)
    between = [count for count in plan.degrees() if 1 < count < plan.gpus]
    yield from (timing(placement, count) for count in between for placement in ("DP", "TP"))


def needed(shape: str, gpus: int, placement: str, rows: int, tokens: int) -> float:
    """Bytes of each GPU for a step of bf16 with block checkpointing: the share of the weights, the
    inputs of all blocks, one block's inside (the feed-forward six times, the width twelve times,
    with gradients), and under ZeRO-3 two gathered blocks."""
    from llama.model.presets import PRESETS
    from llama.weights.shapes import expected_shapes

    config = PRESETS[shape]
    sizes = {name: _product(size) for name, size in expected_shapes(config).items()}
    block = sum(size for name, size in sizes.items() if name.startswith("layers.0."))
    split = gpus if placement == "TP" else 1
    inside = 6 * config.ffn_dim / split + 12 * config.dim
    of_a_token = 2 * (config.n_layers * config.dim + inside)
    gathered = 2 * 2 * block if placement == "ZeRO-3" else 0
    return 2 * sum(sizes.values()) / gpus + rows * tokens * of_a_token + gathered + ROOM_GIB * GIB


def _product(size: tuple[int, ...]) -> int:
    result = 1
    for number in size:
        result *= number
    return result


def large_runs(plan: Plan) -> Iterator[Measure]:
    """At 2 x 2048, or 1 x 2048 where the cards do not hold that."""
    tokens = 32 if plan.tiny else 2048
    model = plan.model if plan.tiny else f"random:{plan.large}"
    usable = float("inf") if plan.memory is None else USABLE * plan.memory
    for placement in ("TP", "ZeRO-3"):
        needs = {rows: needed(plan.large, plan.gpus, placement, rows, tokens) for rows in (2, 1)}
        rows = next((rows for rows, need in needs.items() if need <= usable), 1)
        options = f"--model {model} --seq_len {tokens} {plan.timing} --json".split()
        if placement == "TP":
            options += f"--tensor_parallel {plan.gpus} --batch {rows} --precision bf16".split()
        else:
            options += ["--deepspeed", plan.settings(3, rows, 1)]
        command = [*torchrun(plan.gpus), "launcher/benchmark.py", *options]
        run = Measure("large", f"{placement}, {rows} x {tokens}", plan.gpus, 200, command=command)
        run.environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        if needs[rows] > usable and plan.memory is not None:
            run.skip = True
            have = f"has {plan.memory / GIB:.0f}"
            run.error = f"needs about {needs[rows] / GIB:.0f} GiB of each GPU, which {have}"
        yield run


def kill_runs(plan: Plan) -> Iterator[Measure]:
    options = f"-m tests.gpu.kills --ranks {plan.gpus} {plan.kills}".split()
    model = ["--model", plan.model] if plan.tiny else []
    yield Measure("kills", "DP, ZeRO-1", plan.gpus, limit=270, command=[*options, *model])


def communication_runs(plan: Plan) -> Iterator[Measure]:
    """Data-parallel with and without overlapping, all in one start, and tensor-parallel. ZeRO-3
    comes last: caches of DeepSpeed's keep hold of a model that was cut up."""
    fixed = f"--model {plan.model} --seq_len {plan.tokens} {plan.timing}".split()
    stages = [(stage, overlap) for stage in (1, 2, 3) for overlap in (False, True)]
    files = {
        "DP": [plan.settings(stage, plan.rows, 1, overlap) for stage, overlap in stages],
        "TP": [plan.settings(1, plan.rows, 1)],
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
            small = {"rows": 1, "tokens": 32, "timing": "--warmup 1 --steps 2", "tiny": True}
            model = str(write_model(folder / "model"))
            plan = Plan(given.gpus, folder, None, model, kills="--kills 1 --steps 12", **small)
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
