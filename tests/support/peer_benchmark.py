"""Our training step against transformers + PEFT, in one call: the same weights, tokens and type.

    python tests/support/peer_benchmark.py --batch 4 --seq_len 256       # dense
    python tests/support/peer_benchmark.py --data rows.json --rows 200   # padded and packed

Ours and theirs take turns (A B A B), and each pair gives a ratio: of tokens per second, padding not
counted, on the same batch, or over one pass each through the same examples, theirs padded as
DataCollatorForSeq2Seq does, ours packed. There is no result unless both train as many
parameters and begin at the same loss. docs/benchmarks/README.md tells how each peer is set up.

This is a script beside the tests: pytest does not collect it.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import cycle, islice
from typing import Any, Literal, Protocol

import torch
from peer_models import Theirs, chosen, padded

from llama.assembly.engine import build_engine
from llama.assembly.use import summed_loss
from llama.commands.benchmark import command as own
from llama.commands.benchmark.report import spread
from llama.data.batches import make_batch
from llama.data.types import Batch, Example
from llama.engine import start_processes
from llama.errors import UserError
from llama.launch.processes import launched_world_size, stop_processes
from llama.launch.program import run_program
from llama.metrics.speed import step_flops
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import BenchmarkOptions
from llama.settings.deepspeed_json import Resolved
from llama.settings.options import run_command

LOSS_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 2e-2}
"""Relative difference of the two losses above which they do not compute the same thing."""


@dataclass(frozen=True, kw_only=True)
class PeerOptions(BenchmarkOptions):
    """Settings of this script."""

    steps: int = 1
    """Optimizer steps of one dense measurement; with --data a measurement is a pass over it."""
    warmup: int = 2
    """Optimizer steps of each side before its first measurement."""
    pairs: int = 5
    """Measurements of each side."""
    padded_batch: int = 4
    """Examples of one padded batch of theirs, with --data."""
    peer: tuple[str, ...] = ("auto",)
    """Peers, each made of default, bf16-adapters, liger, flash, joined by +; auto means all that
    run here."""
    order: Literal["auto", "alternate", "sequential"] = "auto"
    """Whether the two take turns, or each is built alone and freed before the next; auto takes
    turns unless memory is capped, and does the second where it does not hold both."""


@dataclass(frozen=True)
class Work:
    """One measurement: the same tokens for both, in windows of one optimizer step each."""

    ours: list[list[Batch]]
    theirs: list[list[dict[str, torch.Tensor]]]
    examples: list[Example]
    """Those of theirs' first batch, on which the two losses are compared."""

    @property
    def tokens(self) -> int:
        return sum(len(batch.tokens) for window in self.ours for batch in window)

    @property
    def supervised(self) -> int:
        return sum(batch.supervised for window in self.ours for batch in window)


class Side(Protocol):
    """One contestant."""

    trainable: int

    def step(self, window: Any) -> object: ...

    def loss(self, examples: list[Example]) -> float:
        """Mean over the supervised tokens, no dropout."""
        ...


@dataclass(frozen=True)
class Facts:
    """What both sides must have in common."""

    trainable: int
    loss: float
    """Before the first step."""


@dataclass(frozen=True)
class Ready:
    """A side that is built and warm."""

    side: Side
    windows: Sequence[Any]
    facts: Facts
    held: int
    """Bytes that it holds on CUDA between steps."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak: int
    """Peak CUDA memory, what the other side held left out."""


class Ours:
    def __init__(self, job: own.Job, resolved: Resolved, mesh: Mesh, device: torch.device) -> None:
        self.engine = build_engine(job.source, job.options, resolved, mesh, device)
        self.trainable = sum(p.numel() for p in self.engine.trainable.values())

    def step(self, window: list[Batch]) -> object:
        return self.engine.step(window)

    def loss(self, examples: list[Example]) -> float:
        batch = make_batch([[example] for example in examples], 0)
        total, supervised = summed_loss(self.engine.model, [batch], self.engine.device)
        return total / supervised

    def release(self) -> None:
        """Give the weights' memory back: DeepSpeed keeps the engine itself for good."""
        for parameter in self.engine.model.parameters():
            parameter.data = parameter.data.new_empty(0)


def make_work(job: own.Job, resolved: Resolved, mesh: Mesh, options: PeerOptions) -> Work:
    epochs = own.epochs(job, resolved, mesh, options.steps)
    ours = list(epochs.windows(0))
    if job.data is None:
        batches = [_documents(batch) for window in ours for batch in window]
    else:
        examples = random.Random(options.seed).sample(job.data.examples, len(job.data.examples))
        size = options.padded_batch
        batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    step = resolved.accumulation
    inputs = [padded(batch) for batch in batches]
    theirs = [inputs[i : i + step] for i in range(0, len(inputs), step)]
    work = Work(ours, theirs, batches[0])
    given = sum(len(example.input_ids) for batch in batches for example in batch)
    assert given == work.tokens, "both train on the same tokens"
    return work


def _documents(batch: Batch) -> list[Example]:
    """The random documents of a batch again, each position its own label."""
    bounds = zip(batch.boundaries, batch.boundaries[1:], strict=False)
    rows = [batch.tokens[start:end].tolist() for start, end in bounds]
    return [Example(ids, ids, row) for row, ids in enumerate(rows)]


class Comparison:
    """One call of this script on one device."""

    def __init__(self, job: own.Job, options: PeerOptions, device: torch.device) -> None:
        self.job, self.options, self.device = job, options, device
        self.mesh = create_mesh(1)
        self.resolved = own.resolve(job, self.mesh)
        self.work = make_work(job, self.resolved, self.mesh, options)

    def run(self) -> dict[str, Any]:
        peers = chosen(self.options.peer, self.resolved.precision, self.device)
        results: dict[str, Any] = {}
        capped = self.options.memory_limit_gb is not None
        if self.options.order == "alternate" or (self.options.order == "auto" and not capped):
            self._alternate(peers, results)
            _free()
        left = [peer for peer in peers if peer not in results]
        if left:
            self._sequential(left, results)
        return results

    def _alternate(self, peers: list[str], results: dict[str, Any]) -> None:
        """Fill in `results`; a peer that memory does not hold beside ours is left out."""
        ours = self._ready(self._ours, self.work.ours)
        for peer in peers:
            try:
                theirs = self._ready(self._theirs(peer), self.work.theirs)
                pairs = [(self._measure(ours), self._measure(theirs)) for _ in self._rounds()]
                results[peer] = self._result(peer, ours.facts, theirs.facts, pairs)
            except torch.OutOfMemoryError:
                if self.options.order == "alternate":
                    raise
            theirs = None
            _free()
        assert isinstance(ours.side, Ours)
        ours.side.release()

    def _sequential(self, peers: list[str], results: dict[str, Any]) -> None:
        alone = {}
        for peer in peers:
            try:
                alone[peer] = self._alone(self._theirs(peer), self.work.theirs)
            except torch.OutOfMemoryError:
                results[peer] = {"error": "out of memory"}
            _free()
        facts, measured = self._alone(self._ours, self.work.ours)
        for peer, (their_facts, theirs) in alone.items():
            pairs = list(zip(measured, theirs, strict=True))
            results[peer] = self._result(peer, facts, their_facts, pairs)
            results[peer]["order"] = "sequential"

    def _alone(
        self, build: Callable[[], Side], windows: Sequence[Any]
    ) -> tuple[Facts, list[Measured]]:
        ready = self._ready(build, windows)
        return ready.facts, [self._measure(ready) for _ in self._rounds()]

    def _ours(self) -> Side:
        return Ours(self.job, self.resolved, self.mesh, self.device)

    def _theirs(self, peer: str) -> Callable[[], Side]:
        return lambda: Theirs(peer.split("+"), self.job, self.resolved, self.device)

    def _rounds(self) -> range:
        return range(self.options.pairs)

    def _ready(self, build: Callable[[], Side], windows: Sequence[Any]) -> Ready:
        before = self._allocated()
        side = build()
        facts = Facts(side.trainable, side.loss(self.work.examples))
        for window in islice(cycle(windows), self.options.warmup):
            side.step(window)
        return Ready(side, windows, facts, self._allocated() - before)

    def _measure(self, ready: Ready) -> Measured:
        other = self._allocated() - ready.held
        if self.device.type == "cuda":  # its cache is kept: filling it again would be timed
            torch.cuda.reset_peak_memory_stats()
        _, seconds = own.timed(self.device, lambda: [ready.side.step(w) for w in ready.windows])
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return Measured(seconds, max(0, peak - other))

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def _result(
        self, peer: str, ours: Facts, theirs: Facts, pairs: list[tuple[Measured, Measured]]
    ) -> dict[str, Any]:
        difference = abs(ours.loss - theirs.loss) / abs(theirs.loss)
        if ours.trainable != theirs.trainable or not (
            difference <= LOSS_TOLERANCE[self.resolved.precision]
        ):
            raise RuntimeError(f"{peer} does not compute the same: ours {ours}, theirs {theirs}")
        work = self.work
        operations = step_flops(self.job.source.config, work.tokens, work.supervised)
        result: dict[str, Any] = {
            "ratio": spread([theirs.seconds / ours.seconds for ours, theirs in pairs]),
            "ratios": [theirs.seconds / ours.seconds for ours, theirs in pairs],
            "loss": {"ours": ours.loss, "theirs": theirs.loss},
            "order": "alternate",
        }
        for index, name in enumerate(("ours", "theirs")):
            seconds = [pair[index].seconds for pair in pairs]
            result[name] = {
                "tokens_per_second": spread([work.tokens / s for s in seconds]),
                "tflops": operations / statistics.median(seconds) / 1e12,
                "peak_memory_bytes": max(pair[index].peak for pair in pairs) or None,
            }
        return result


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(document: dict[str, Any]) -> str:
    """Both sides and the ratio for each peer, for a reader."""
    lines = [f"{'peer':22} {'ours tok/s':>11} {'theirs':>11}   ours / theirs (min - max)"]
    for peer, result in document["peers"].items():
        if "error" in result:
            lines.append(f"{peer:22} {result['error']}")
            continue
        ours, theirs = (result[side]["tokens_per_second"]["median"] for side in ("ours", "theirs"))
        r = result["ratio"]
        ratio = f"{r['median']:.3f} ({r['min']:.3f} - {r['max']:.3f})"
        lines.append(f"{peer:22} {ours:11,.1f} {theirs:11,.1f}   {ratio}, {result['order']}")
    d = document
    return "\n".join(
        [
            *lines,
            f"{d['model']}, {d['precision']}, checkpointing {d['checkpointing']}, "
            f"{d['data'] or 'random tokens'}, {d['tokens']:,} tokens a measurement",
            f"{d['device']}, {d['cpu']}, {d['host_cores']} cores; "
            f"CPU has bf16: {d.get('cpu_has_bf16', 'not asked')}",
            f"{d['packages']}",
            d["command"],
        ]
    )


def compare(options: PeerOptions) -> int:
    job = own.read_job(options)
    device = start_processes()
    try:
        if launched_world_size() > 1:
            raise UserError("this script compares one process with one")
        own.limit_memory(options.memory_limit_gb, device)
        comparison = Comparison(job, options, device)
        rate = own.matrix_rate(device)
        peers = comparison.run()
    finally:
        stop_processes()
    ran = {
        peer: r["theirs"]["tokens_per_second"]["median"]
        for peer, r in peers.items()
        if "ratio" in r
    }
    document = own.describe(job, comparison.resolved, comparison.mesh, device)
    for package in ("transformers", "peft", "liger_kernel", "flash_attn"):
        if importlib.util.find_spec(package):
            document["packages"][package] = metadata.version(package)
    document |= {
        "tokens": comparison.work.tokens,
        "matrix_tflops": rate and rate / 1e12,
        "peers": peers,
        "best_peer": max(ran, key=lambda peer: ran[peer], default=None),
    }
    print(table(document), file=sys.stderr)
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    run_program(run_command, compare, PeerOptions, "peer_benchmark.py", __doc__ or "")
