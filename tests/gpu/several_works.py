"""The steps that `several_gpus` times: what is trained, how it is laid over the GPUs, and beside
what that is put."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llama.commands.benchmark.sub_run import GIB
from tests.gpu.several_tables import BESIDE_WHOLE, Measure
from tests.gpu.sub_runs import ROOT, torchrun
from tests.support.tiny_runs import write_json

SHIPPED = {1: "lora_bf16", 2: "lora_zero2", 3: "lora_zero3"}
"""ZeRO stage to the file of ds_configs/ that it is taken from."""
SHARDED, ZERO_3 = BESIDE_WHOLE
PLACEMENTS = {
    "DP": "",
    SHARDED: "--shard_base all",
    "TP": "--tensor_parallel {}",
    "SP": "--sequence_parallel {}",
    ZERO_3: "",
}
"""How rows, layers or tokens are laid over the GPUs, to the options that say so."""
ROOM_GIB = 4.0
"""Of each GPU, for CUDA, NCCL, the loss and the gaps between allocations."""
USABLE = 0.97
"""Of a card's memory."""


@dataclass(frozen=True)
class Work:
    """A step of each data-parallel rank: a model and micro-batches of it, adapters on all layers.
    Under TP and SP all ranks together take one such step."""

    model: str
    rows: int = 2
    tokens: int = 4096
    checkpointing: str = "block"
    base: str = "half"
    accumulation: int = 1

    def __str__(self) -> str:
        several = f"{self.accumulation} of " if self.accumulation > 1 else ""
        base = "" if self.base == "half" else f", {self.base}"
        name = Path(self.model.removeprefix("random:")).name
        return f"{name}, {several}{self.rows} x {self.tokens}, {self.checkpointing}{base}"


@dataclass(frozen=True)
class Timed:
    """A work on some GPUs (None: on all). `reach`: the share of what it is put beside that it is to
    reach; see `several_tables.beside`."""

    work: Work
    placement: str
    gpus: int | None = None
    reach: float | None = None


SEVEN, EIGHT, SEVENTY = "random:llama-7b", "random:llama-3-8b", "random:llama-3-70b"
WHOLE = Work(SEVEN)
NOTHING_AGAIN = replace(WHOLE, checkpointing="none")
EIGHT_BITS = replace(WHOLE, base="fp8")
SMALL = replace(WHOLE, rows=1, tokens=1024, accumulation=8)
WIDE = Work(EIGHT, checkpointing="none")
LONG = Work(EIGHT, 1, 131_072, "host")
SPEED = (
    Timed(WHOLE, "DP", 1),
    Timed(WHOLE, "DP", reach=0.97),
    Timed(WHOLE, SHARDED, reach=0.96),
    Timed(WIDE, "DP", 1),
    Timed(WIDE, "TP", reach=0.90),
    Timed(NOTHING_AGAIN, "DP"),
    Timed(NOTHING_AGAIN, SHARDED, reach=0.95),
    Timed(EIGHT_BITS, "DP"),
    Timed(EIGHT_BITS, SHARDED, reach=0.97),
    Timed(SMALL, "DP"),
    Timed(SMALL, SHARDED, reach=0.85),
    Timed(WHOLE, ZERO_3),
)
LONG_ROWS = (Timed(LONG, "DP", 1), Timed(LONG, "SP", reach=0.85))
LARGE = tuple(
    Timed(Work(SEVENTY, base=base), placement)
    for base in ("half", "fp8")
    for placement in ("TP", SHARDED)
)


@dataclass(frozen=True)
class Plan:
    """What is measured, on how many GPUs."""

    gpus: int
    folder: Path
    """Of the DeepSpeed JSONs that are written."""
    memory: float | None = None
    """Bytes of one GPU."""
    timing: str = "--warmup 2 --steps 5"
    kills: str = "--kills 5"
    tiny: Path | None = None
    """A tiny model, on CPU, in the place of every other."""

    def model(self, name: str) -> str:
        return name if self.tiny is None else str(self.tiny)

    def degrees(self) -> list[int]:
        """Powers of two up to the number of GPUs."""
        return [2**i for i in range(self.gpus.bit_length()) if 2**i <= self.gpus]

    def sized(self, work: Work) -> Work:
        """As much of `work` as a tiny model on a CPU takes."""
        if self.tiny is None:
            return work
        return replace(work, model=str(self.tiny), rows=1, tokens=32)

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


def timing(plan: Plan, part: str, timed: Timed, limit: float = 150) -> Measure:
    """What times it, of `launcher/benchmark.py`."""
    work, count = plan.sized(timed.work), timed.gpus or plan.gpus
    stage = 3 if timed.placement == ZERO_3 else 1
    options = ["--model", work.model, "--deepspeed"]
    options.append(plan.settings(stage, work.rows, work.accumulation))
    options += f"--seq_len {work.tokens} --checkpointing {work.checkpointing}".split()
    options += f"--base {work.base} --lora.targets all-linear {plan.timing} --json".split()
    options += PLACEMENTS[timed.placement].format(count).split()
    command = [*torchrun(count), "launcher/benchmark.py", *options]
    run = Measure(part, timed.placement, count, limit=limit, command=command)
    run.work, run.reach = str(work), timed.reach
    run.environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return run


def speed_runs(plan: Plan) -> Iterator[Measure]:
    """What one model takes each way; at last how data-parallel ranks grow in number."""
    yield from (timing(plan, "speed", timed) for timed in SPEED)
    between = [count for count in plan.degrees() if 1 < count < plan.gpus]
    yield from (timing(plan, "speed", Timed(WHOLE, "DP", n, reach=0.97)) for n in between)


def long_runs(plan: Plan) -> Iterator[Measure]:
    """A step takes most of a minute, and no two differ by much."""
    if plan.tiny is None:
        plan = replace(plan, timing="--warmup 1 --steps 1")
    yield from (timing(plan, "long", timed, limit=260) for timed in LONG_ROWS)


def needed(work: Work, gpus: int, placement: str) -> float:
    """Bytes of each GPU for a step with blocks computed again: the share of the weights, the inputs
    of all blocks, one block's inside (the feed-forward six times, the width twelve times, with
    gradients), and three gathered blocks where ranks share a base."""
    from llama.model.presets import PRESETS
    from llama.weights.shapes import expected_shapes

    config = PRESETS[work.model.removeprefix("random:")]
    sizes = {name: math.prod(size) for name, size in expected_shapes(config).items()}
    blocks = sum(size for name, size in sizes.items() if name.startswith("layers."))
    bytes_of = 1 if work.base == "fp8" else 2
    weights = bytes_of * blocks + 2 * (sum(sizes.values()) - blocks)
    split = gpus if placement == "TP" else 1
    inside = 6 * config.ffn_dim / split + 12 * config.dim
    of_a_token = 2 * (config.n_layers * config.dim + inside)
    gathered = 3 * bytes_of * blocks / config.n_layers if placement == SHARDED else 0
    return weights / gpus + work.rows * work.tokens * of_a_token + gathered + ROOM_GIB * GIB


def large_runs(plan: Plan) -> Iterator[Measure]:
    """At 2 x 4096, or as many of these tokens as the cards hold."""
    usable = float("inf") if plan.memory is None else USABLE * plan.memory
    for timed in LARGE:
        sizes = [
            replace(timed.work, rows=r, tokens=t) for r, t in ((2, 4096), (2, 2048), (1, 2048))
        ]
        needs = {size: needed(size, plan.gpus, timed.placement) for size in sizes}
        fitting = next((size for size, need in needs.items() if need <= usable), sizes[-1])
        run = timing(plan, "large", replace(timed, work=fitting), limit=200)
        if needs[fitting] > usable and plan.memory is not None:
            run.skip = True
            have = f"has {plan.memory / GIB:.0f}"
            run.error = f"needs about {needs[fitting] / GIB:.0f} GiB of each GPU, which {have}"
        yield run
