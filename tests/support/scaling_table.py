"""The tables of docs/scaling.md that are arithmetic:
`python -m tests.support.scaling_table` prints them.

What a step moves follows the formulas that `tests/multinode` holds against bytes counted on two
hosts; how fast links and devices are is assumed below. Nothing is taken to overlap, so that each
efficiency is the least that these rates allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama.model.config import ModelConfig
from llama.model.presets import PRESETS

RANK, TARGETS = 16, ("wq", "wv")
HALF = 2
"""Bytes of an element that is computed with or sent."""
GPUS_PER_NODE = 8

COMPUTE = 13_325 * 6 * PRESETS["llama-7b"].parameter_count()
"""FLOP/s of a GPU: 13,325 tokens/s of 7B, 2 x 4096 with blocks recomputed, on one H200
(docs/benchmarks/h200.md), at 2 FLOP a parameter for each of forward, recomputation and backward."""
SHARE_OF_LINE_RATE = 0.8
"""That a collective is taken to reach between nodes."""


@dataclass(frozen=True)
class Link:
    """What carries a step's bytes in one direction."""

    name: str
    bytes_per_second: float
    """That a collective reaches: from one GPU within a node, from a whole node between nodes."""
    hop: float
    """Seconds that a message takes at least."""


NVLINK = Link("NVLink 4 (one node)", 286.5e9, 3e-6)
"""NCCL's all-reduce of 128 MiB over two H100s, by tests/gpu/link_rate.py; 450 GB/s on paper."""
BETWEEN_NODES = (
    Link("8 x NDR 400 Gb/s", SHARE_OF_LINE_RATE * GPUS_PER_NODE * 400e9 / 8, 5e-6),
    Link("1 x 100 GbE", SHARE_OF_LINE_RATE * 100e9 / 8, 30e-6),
    Link("1 x 25 GbE", SHARE_OF_LINE_RATE * 25e9 / 8, 30e-6),
)


@dataclass(frozen=True)
class Layout:
    """A way to train a model."""

    model: str
    tensor_parallel: int
    stage: int
    tokens: int
    """Of a micro-batch, of which a step has one."""

    @property
    def config(self) -> ModelConfig:
        return PRESETS[self.model]

    @property
    def adapter(self) -> int:
        """Bytes of the adapter on one rank. On wq and wv A is replicated over the shards, B cut."""
        shapes = [self.config.linear_shape(name) for name in TARGETS]
        count = sum(RANK * (inputs + outputs // self.tensor_parallel) for outputs, inputs in shapes)
        return HALF * self.config.n_layers * count

    @property
    def base(self) -> int:
        """Bytes of the frozen weights of one model shard."""
        return HALF * self.config.parameter_count() // self.tensor_parallel

    @property
    def compute_seconds(self) -> float:
        """Of a step, with blocks recomputed."""
        flops = 6 * self.config.parameter_count() * self.tokens
        return flops / self.tensor_parallel / COMPUTE

    def exchanged(self, ranks: int) -> float:
        """Bytes that leave each of `ranks` data-parallel ranks in a step."""
        share = (ranks - 1) / ranks
        gathered = 2 * self.base if self.stage == 3 else 0  # for the forward, and the backward
        return share * (2 * self.adapter + gathered)

    @property
    def summed(self) -> int:
        """Bytes of the activations that tensor parallelism sums in a step: of each layer two in the
        forward, two in the backward, and one in between, since what is recomputed stops before
        the second; the embedding's, and the gradient of the last hidden states."""
        if self.tensor_parallel == 1:
            return 0
        width = HALF * self.tokens * self.config.dim
        adapters = HALF * self.tokens * RANK * len(TARGETS)
        return self.config.n_layers * (5 * width + adapters) + 2 * width


LAYOUTS = (
    Layout("llama-7b", 1, 1, 8192),
    Layout("llama-7b", 1, 3, 8192),
    Layout("llama-3.1-70b", 8, 1, 8192),
    Layout("llama-3.1-70b", 1, 3, 8192),
    Layout("llama-3.1-405b", 8, 1, 4096),
    Layout("llama-3.1-405b", 1, 3, 4096),
)


def efficiency(layout: Layout, gpus: int, between: Link) -> float:
    """Share of a step's time that is spent computing."""
    waiting = tensor_seconds(layout) + data_seconds(layout, gpus, between)
    return layout.compute_seconds / (layout.compute_seconds + waiting)


def tensor_seconds(layout: Layout) -> float:
    """Of the sums over model shards, which stay within a node: each by a ring."""
    p = layout.tensor_parallel
    bytes_sent = 2 * (p - 1) / p * layout.summed
    messages = layout.config.n_layers * (5 + len(TARGETS))
    hops = 0 if p == 1 else messages * 2 * (p - 1)
    return bytes_sent / NVLINK.bytes_per_second + hops * NVLINK.hop


def data_seconds(layout: Layout, gpus: int, between: Link) -> float:
    """Of the exchange over data-parallel ranks: rings that run through all GPUs of a node before
    they leave it, so that what crosses a node's edge is what leaves one rank, for each shard."""
    ranks, nodes = gpus // layout.tensor_parallel, gpus // GPUS_PER_NODE
    if ranks == 1:
        return 0.0
    sent = layout.exchanged(ranks)
    within = sent / NVLINK.bytes_per_second if layout.tensor_parallel < GPUS_PER_NODE else 0.0
    across = layout.tensor_parallel * sent / between.bytes_per_second if nodes > 1 else 0.0
    rounds = 2 * (1 + layout.config.n_layers if layout.stage == 3 else 1)
    ring = (ranks - nodes) * NVLINK.hop + (nodes if nodes > 1 else 0) * between.hop
    # Six small sums a step: losses, tokens, the norm, whether it is finite; each by a tree.
    small = 6 * 2 * math.ceil(math.log2(ranks)) * (between.hop if nodes > 1 else NVLINK.hop)
    return max(within, across) + rounds * ring + small


def traffic_table() -> str:
    """Bytes of a step at 64 GPUs."""
    lines = [
        "| model | TP | ZeRO | tokens | adapter of a rank | leaves a rank, over data | "
        "leaves a rank, over tensors | computing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layout in LAYOUTS:
        p = layout.tensor_parallel
        data, tensors = layout.exchanged(64 // p), 2 * (p - 1) / p * layout.summed
        lines.append(
            f"| {layout.model} | {p} | {layout.stage} | {layout.tokens:,} | "
            f"{layout.adapter / 1e6:.1f} MB | {data / 1e6:,.1f} MB | {tensors / 1e9:.1f} GB | "
            f"{layout.compute_seconds:.2f} s |"
        )
    return "\n".join(lines)


def efficiency_table() -> str:
    """Share of the time spent computing, at 8, 64 and 512 GPUs."""
    columns = [(8, NVLINK), *((gpus, link) for link in BETWEEN_NODES for gpus in (64, 512))]
    head = " | ".join(f"{gpus}: {link.name}" for gpus, link in columns)
    lines = [f"| model | TP | ZeRO | {head} |", "|---|---|---|" + "---|" * len(columns)]
    for layout in LAYOUTS:
        cells = " | ".join(f"{efficiency(layout, gpus, link):.1%}" for gpus, link in columns)
        lines.append(f"| {layout.model} | {layout.tensor_parallel} | {layout.stage} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    print(f"{traffic_table()}\n\n{efficiency_table()}")


if __name__ == "__main__":
    main()
