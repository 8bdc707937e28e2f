"""The tables of docs/scaling.md that are arithmetic:
`python -m tests.support.scaling_table` prints them.

What a step moves follows the formulas that `tests/multinode` holds against bytes counted on two
hosts; how fast links and devices are is assumed below. Nothing is taken to overlap, so that each
efficiency is the least that these rates allow.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama.metrics.hardware import GPUS, GPUS_PER_NODE, NETWORKS, NVLINK, Link
from llama.model.config import ModelConfig
from llama.model.kept import Kept
from llama.model.presets import PRESETS
from llama.planning.time import Place, group_place, ring_seconds, small_sums_seconds
from llama.planning.time import tensor_seconds as tensor_seconds_of
from llama.planning.wire import base_gathered, block_sums, exchanged_bytes, summed_bytes
from llama.planning.work import adapter_bytes, base_bytes
from llama.settings import LoRAOptions
from llama.settings.sharing import ALL, HOST, WHOLE, Ranks, sharers

LORA = LoRAOptions(rank=16, targets=("wq", "wv"))
HALF = 2
"""Bytes of an element that is computed with or sent."""

COMPUTE = 13_325 * 6 * PRESETS["llama-7b"].parameter_count()
"""FLOP/s of a GPU: 13,325 tokens/s of 7B, 2 x 4096 with blocks recomputed, on one H200
(docs/benchmarks/h200.md), at 2 FLOP a parameter for each of forward, recomputation and backward."""
_HOLDERS = {WHOLE: "each GPU", HOST: "a host", ALL: "all"}
BETWEEN_NODES = (NETWORKS["ndr-400"], NETWORKS["100gbe"], NETWORKS["25gbe"])


@dataclass(frozen=True)
class Layout:
    """A way to train a model."""

    model: str
    tensor_parallel: int
    stage: int
    tokens: int
    """Of a micro-batch, of which a step has one."""
    shard_base: str = WHOLE
    """As the option of that name has it."""

    @property
    def config(self) -> ModelConfig:
        return PRESETS[self.model]

    @property
    def adapter(self) -> int:
        """Bytes of the adapter on one rank."""
        return adapter_bytes(self.config, LORA, self.tensor_parallel, HALF)

    @property
    def base(self) -> int:
        """Bytes of the frozen weights of one model shard."""
        return base_bytes(self.config, self.tensor_parallel, HALF)

    @property
    def compute_seconds(self) -> float:
        """Of a step, with blocks recomputed."""
        flops = 6 * self.config.parameter_count() * self.tokens
        return flops / self.tensor_parallel / COMPUTE

    @property
    def holders(self) -> str:
        """Whose GPUs hold one base together."""
        return _HOLDERS[ALL if self.stage == 3 else self.shard_base]

    def sharers(self, gpus: int) -> int:
        """Of `gpus`, the data-parallel ranks that hold one base together."""
        ranks = Ranks(gpus, min(gpus, GPUS_PER_NODE))
        return sharers(self.shard_base, self.tensor_parallel, ranks)

    def exchanged(self, gpus: int) -> float:
        """Bytes that leave each data-parallel rank of `gpus` in a step, but for `gathered`."""
        ranks = gpus // self.tensor_parallel
        return exchanged_bytes(self.stage, ranks, 1, self.adapter, self.base)

    def gathered(self, gpus: int) -> float:
        """The same of a base that ranks share."""
        return base_gathered(self.config, self.sharers(gpus), self.tensor_parallel, HALF)

    @property
    def block_sums(self) -> list[int]:
        """Elements of each of a micro-batch's sums in blocks, which are fused and recomputed."""
        kept = (Kept.INPUT,) * self.config.n_layers
        return block_sums(self.config, LORA, self.tokens, kept, fused=True, by_rows=True)

    @property
    def summed(self) -> float:
        """Bytes of the activations that tensor parallelism sums in a step."""
        if self.tensor_parallel == 1:
            return 0
        return summed_bytes(self.config, self.tokens, self.tokens, self.block_sums, HALF)


LAYOUTS = (
    Layout("llama-7b", 1, 1, 8192),
    Layout("llama-7b", 1, 3, 8192),
    Layout("llama-7b", 1, 1, 8192, HOST),
    Layout("llama-3.1-70b", 8, 1, 8192),
    Layout("llama-3.1-70b", 1, 3, 8192),
    Layout("llama-3.1-70b", 1, 1, 8192, ALL),
    Layout("llama-3.1-70b", 1, 1, 8192, HOST),
    Layout("llama-3.1-405b", 8, 1, 4096),
    Layout("llama-3.1-405b", 1, 3, 4096),
    Layout("llama-3.1-405b", 1, 1, 4096, ALL),
    Layout("llama-3.1-405b", 1, 1, 4096, HOST),
)


def efficiency(layout: Layout, gpus: int, between: Link) -> float:
    """Share of a step's time that is spent computing."""
    waiting = tensor_seconds(layout) + data_seconds(layout, gpus, between)
    return layout.compute_seconds / (layout.compute_seconds + waiting)


def tensor_seconds(layout: Layout) -> float:
    """Of the sums over model shards, which stay within a node: each by a ring."""
    p = layout.tensor_parallel
    number = len(layout.block_sums)
    return tensor_seconds_of(NVLINK, p, 2 * (p - 1) / p * layout.summed, number)


def data_seconds(layout: Layout, gpus: int, between: Link) -> float:
    """Of the exchange over data-parallel ranks."""
    ranks = gpus // layout.tensor_parallel
    if ranks == 1:
        return 0.0
    place = Place(GPUS["h100-80gb"], gpus // GPUS_PER_NODE, between)
    each, p, m = 2 * layout.config.n_layers, layout.tensor_parallel, layout.sharers(gpus)
    rounds = 2 + (each if layout.stage == 3 else 0)
    ring = ring_seconds(place, ranks, p, layout.exchanged(gpus), rounds)
    if m > 1:
        ring += ring_seconds(group_place(place, ranks, m), m, p, layout.gathered(gpus), each)
    return ring + small_sums_seconds(place, ranks)


def traffic_table() -> str:
    """Bytes of a step at 64 GPUs."""
    lines = [
        "| model | TP | ZeRO | base held by | tokens | adapter of a rank | leaves a rank, over "
        "data | of it between hosts | leaves a rank, over tensors | computing |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for layout in LAYOUTS:
        p = layout.tensor_parallel
        gathered, tensors = layout.gathered(64), 2 * (p - 1) / p * layout.summed
        data = layout.exchanged(64)
        between = data + (gathered if layout.sharers(64) > GPUS_PER_NODE else 0)
        lines.append(
            f"| {layout.model} | {p} | {layout.stage} | {layout.holders} | "
            f"{layout.tokens:,} | {layout.adapter / 1e6:.1f} MB | "
            f"{(data + gathered) / 1e6:,.1f} MB | {between / 1e6:,.1f} MB | "
            f"{tensors / 1e9:.1f} GB | {layout.compute_seconds:.2f} s |"
        )
    return "\n".join(lines)


def efficiency_table() -> str:
    """Share of the time spent computing, at 8, 64 and 512 GPUs."""
    columns = [(8, NVLINK), *((gpus, link) for link in BETWEEN_NODES for gpus in (64, 512))]
    head = " | ".join(f"{gpus}: {link.name}" for gpus, link in columns)
    lines = [f"| model | TP | ZeRO | base held by | {head} |"]
    lines.append("|---|---|---|---|" + "---|" * len(columns))
    for layout in LAYOUTS:
        cells = " | ".join(f"{efficiency(layout, gpus, link):.1%}" for gpus, link in columns)
        what = f"{layout.model} | {layout.tensor_parallel} | {layout.stage}"
        lines.append(f"| {what} | {layout.holders} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    print(f"{traffic_table()}\n\n{efficiency_table()}")


if __name__ == "__main__":
    main()
