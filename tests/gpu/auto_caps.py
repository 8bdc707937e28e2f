"""Whether `--checkpointing auto` keeps its word, on one GPU, from the project's root:

    python -m tests.gpu.auto_caps --count 60 --budget 400 --seed 0

Random models, batches, adapters and holdings under random caps of memory, between what `block`
needs and what `none` needs. Of each: whether nine steps of `auto` end, of which the last has rows
longer than those that it was planned for; and how a step of it compares with the fastest fixed
setting (none, ffn, block) that ends the same nine. All of a configuration runs on one engine, and
all configurations in one process. Where memory runs out each does what `train` does there. Every
setting hands its gradients to DeepSpeed in the same way.

A line each on standard error, all of it in auto-caps.json (in $OUT, unless --output says where),
written anew after each; a summary comes last. `--tiny` is the same on a CPU, without caps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.assembly.lessening import WithoutGraphs
from llama.assembly.memory import job_of, keep_what_fits
from llama.commands.benchmark.command import deepspeed_config, timed
from llama.commands.benchmark.report import machine
from llama.commands.benchmark.sub_run import GIB
from llama.data.batches import make_batch
from llama.data.types import Batch, Example
from llama.engine import Engine, start_processes
from llama.engine.again import KeepLess
from llama.fused.captured import RunCaptured, add_gradients, capture
from llama.fused.keeping import Sizes, summary
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.config import LINEARS
from llama.model.kept import KEPT, Kept
from llama.model.presets import PRESETS
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh, create_mesh
from llama.planning.constants import CONSTANTS
from llama.planning.levels import sizes_of
from llama.settings import BenchmarkOptions, LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY

STEPS = 9
STEADY = slice(3, STEPS - 1)
"""Steps that are timed: the first makes the kernels, the second records graphs, another what packed
rows want beside them, and the last has other rows."""
LONGER = 1.25
"""Length of the last step's rows, in lengths of those before it."""
CLOSE = 1.05
"""Of the fastest fixed setting's milliseconds, what a step of auto is to take at most."""
FIXED = ("none", "ffn", "block")
SHAPES = {"smollm2-135m": (10, 30), "llama-3.2-1b": (4, 16), "llama-7b": (2, 8)}
"""Fewest and most layers, so that a configuration takes seconds."""


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    layers: int
    rows: int
    length: int
    targets: tuple[str, ...]
    dropout: float
    base: str
    packed: bool
    micro_batches: int
    share: float
    """Where the cap lies between what `block` needs, 0, and what `none` needs, 1."""
    seed: int

    @property
    def name(self) -> str:
        targets = "all" if len(self.targets) > 2 else "q,v"
        packed = " packed" if self.packed else ""
        return (
            f"{self.model}/{self.layers} {self.micro_batches} x {self.rows} x {self.length}"
            f"{packed} {targets} p{self.dropout:g} {self.base}"
        )

    @property
    def options(self) -> BenchmarkOptions:
        return BenchmarkOptions(
            model=f"random:{self.model}",
            batch=self.rows,
            seq_len=self.length,
            precision="bf16",
            checkpointing="block",
            lora=LoRAOptions(targets=self.targets, dropout=self.dropout),
            base=self.base,  # type: ignore[arg-type]
        )

    def source(self, device: torch.device, tiny: bool) -> ModelSource:
        config = TINY if tiny else PRESETS[self.model].with_layers(self.layers)
        return ModelSource(self.options.model, RandomReader(config, device=device), None)

    def windows(self, vocabulary: int) -> list[list[Batch]]:
        """The micro-batches of each step; those of a packed case have other documents each."""
        dice = random.Random(self.seed)
        lengths = [self.length] * (STEPS - 1) + [int(self.length * LONGER)]
        return [
            [
                make_batch([self._row(dice, length, vocabulary) for _ in range(self.rows)], stream)
                for stream in range(self.micro_batches)
            ]
            for length in lengths
        ]

    def _row(self, dice: random.Random, length: int, vocabulary: int) -> list[Example]:
        sizes = []
        while length > 0:
            most = min(length, dice.randrange(20, max(21, self.length // 2)))
            sizes.append(most if self.packed else length)
            length -= sizes[-1]
        rows = [[dice.randrange(vocabulary) for _ in range(size)] for size in sizes]
        return [Example(ids, ids, 0) for ids in rows]


def drawn(dice: random.Random, fp8: bool) -> Case:
    model = dice.choice(list(SHAPES))
    rows = dice.choice((1, 2, 4, 8))
    bases = ["half", "half", *["fp8"] * fp8, *["nf4"] * (find_spec("bitsandbytes") is not None)]
    return Case(
        model=model,
        layers=dice.randint(*SHAPES[model]),
        rows=rows,
        length=dice.choice([size for size in (512, 1024, 2048, 4096) if rows * size <= 8192]),
        targets=dice.choice((("wq", "wv"), LINEARS)),
        dropout=dice.choice((0.0, 0.05)),
        base=dice.choice(bases),
        packed=dice.random() < 0.5,
        micro_batches=dice.choice((1, 1, 2)),
        share=dice.random(),
        seed=dice.randrange(2**31),
    )


def unhelped(_: int) -> bool:
    """Of what has nothing to do without where memory runs out."""
    return False


class Configuration:
    """One case on its engine."""

    def __init__(self, case: Case, mesh: Mesh, device: torch.device, tiny: bool) -> None:
        self.case, self.mesh, self.device = case, mesh, device
        source = case.source(device, tiny)
        settings = deepspeed_config(case.options)
        resolved = resolve_here(settings, mesh, STEPS * (1 + len(FIXED)), source.config)
        self.engine: Engine = build_engine(source, case.options, resolved, mesh, device)
        self.model = cast(Transformer, self.engine.model)
        self.windows = case.windows(source.config.vocab_size)
        self.cap: float | None = None
        self.keep_less: KeepLess = unhelped

        def helped(failures: int) -> bool:
            return self.keep_less(failures)

        self._onto = self.engine.add_up_gradients(helped, looks_for_room=True)

    def limit(self) -> None:
        """Cap the memory that this process may take, by what its plan says of the longest rows."""
        shape = self.case.rows, self.case.length
        sizes: Sizes = sizes_of(job_of(self.model, *shape, self.mesh, self.device))
        least, most = (
            LONGER * (sizes.beside[level] + len(self.model.kept) * sizes.kept[level])
            for level in (Kept.INPUT, Kept.ALL)
        )
        activations = least + self.case.share * (most - least)
        fixed = torch.cuda.memory_allocated() + self.engine.step_bytes()
        room = activations / (1 - CONSTANTS.fragments) + CONSTANTS.cublas_workspace
        total = torch.cuda.get_device_properties(self.device).total_memory
        self.cap = min(fixed + room, total)
        torch.cuda.set_per_process_memory_fraction(self.cap / total, self.device)

    def place(self, setting: str) -> None:
        """Have the model keep what `setting` says, and nothing be left of the one before."""
        model, engine, run = self.model, self.engine, self.model.run_model
        captures = isinstance(run, RunCaptured)
        if isinstance(run, RunCaptured):  # a run is planned before its passes are recorded
            run.forget()
            model.run_model = run._run
        model.output.elements = None
        free()
        self.keep_less = unhelped
        if setting == "auto":
            shape = self.case.rows, self.case.length
            found = keep_what_fits(model, *shape, self.mesh, self.device, engine.step_bytes())
            self.keep_less = found or unhelped
        else:
            model.keep([KEPT[setting]] * len(model.kept))  # type: ignore[index]
        if captures:
            capture(model)
            add_gradients(model, self._onto, may_do_with_less=setting == "auto")
            if setting != "auto":
                self.keep_less = WithoutGraphs(model)

    def measured(self, setting: str) -> dict[str, Any]:
        """The steps; `ended` is false where memory ran out."""
        self.place(setting)
        planned, before = summary(self.model.kept), retries()
        found: dict[str, Any] = {"ended": True, "kept": planned}
        seconds: list[float] = []
        try:
            for window in self.windows:
                _, took = timed(self.device, lambda w=window: self.engine.step(w))
                seconds.append(took)
        except torch.OutOfMemoryError as error:
            found |= {"ended": False, "error": str(error).splitlines()[0]}
        if len(seconds) >= STEPS - 1:
            found["ms"] = statistics.median(seconds[STEADY]) * 1e3
        found |= {"steps_ms": [round(took * 1e3, 2) for took in seconds]}
        return found | {"kept_at_the_end": summary(self.model.kept), "retries": retries() - before}


def retries() -> int:
    """How often the allocator has had to give its cache back to the device to go on."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.memory_stats()["num_alloc_retries"])


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def result_of(case: Case, mesh: Mesh, device: torch.device, tiny: bool) -> dict[str, Any]:
    """All settings of one case, auto first, as on a start; whatever goes wrong is in the result."""
    started, found = time.monotonic(), dict[str, Any]()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    free()
    one = Configuration(case, mesh, device, tiny)
    try:
        if on_cuda:
            one.limit()
        for setting in ("auto", *FIXED):
            found[setting] = one.measured(setting)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    finally:
        one.engine.close()
        del one.model
    fits = {s: found[s]["ms"] for s in FIXED if found.get(s, {}).get("ended")}
    best = min(fits, key=lambda setting: fits[setting], default=None)
    auto = found.get("auto", {"ended": False})
    ratio = auto["ms"] / fits[best] if best and auto["ended"] else None
    return {
        "case": case.name,
        **asdict(case),
        "cap_gib": one.cap and one.cap / GIB,
        **found,
        "best": best,
        "ratio": ratio,
        "seconds": round(time.monotonic() - started, 1),
    }


def line(result: dict[str, Any]) -> str:
    cap = f"{result['cap_gib']:.2f} GiB" if result["cap_gib"] else "no cap"
    auto = result.get("auto", {})
    said = [f"{auto['ms']:.1f} ms" if auto.get("ended") else f"DID NOT END {auto.get('error')}"]
    if result["best"]:
        said.append(f"best {result['best']} {result[result['best']]['ms']:.1f} ms")
        said.append(f"{result['ratio']:.3f}" if result["ratio"] else "-")
    else:
        said.append("no fixed setting fits")
    said += [str(auto.get("kept_at_the_end")), f"{auto.get('retries')} retries"]
    return " | ".join([result["case"], cap, *said, *filter(None, [result.get("error")])])


def verdict(results: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = sorted(result["ratio"] for result in results if result["ratio"])
    return {
        "configurations": len(results),
        "auto_ended": sum(result.get("auto", {}).get("ended", False) for result in results),
        "compared": len(ratios),
        "close": sum(ratio <= CLOSE for ratio in ratios),
        "median_ratio": statistics.median(ratios) if ratios else None,
        "worst_ratio": ratios[-1] if ratios else None,
        "errors": sum("error" in result for result in results),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="auto under random caps.")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--budget", type=float, default=400, help="seconds; then none is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    started, results = time.monotonic(), list[dict[str, Any]]()
    device, dice = start_processes(), random.Random(given.seed)
    fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    mesh = create_mesh(1)
    for _ in range(given.count):
        case = drawn(dice, fp8)
        if given.tiny:
            case = replace(case, rows=1, length=48, base="half")
        if time.monotonic() - started > given.budget:
            break
        results.append(result_of(case, mesh, device, given.tiny))
        print(line(results[-1]), file=sys.stderr, flush=True)
        document = {"summary": verdict(results), "results": results, **machine(device)}
        (given.output / "auto-caps.json").write_text(json.dumps(document, indent=1))
    stop_processes()
    found = verdict(results)
    print(json.dumps(found))
    return 0 if found["auto_ended"] == len(results) else 1


if __name__ == "__main__":
    run_program(main)
