"""The arithmetic of one training step: formulas over the sizes of a model and of a job, each of one
rank.

Letters: T tokens of a micro-batch, D width, F feed-forward width, R rank of the adapters, p the
tensor-parallel degree, n data-parallel ranks, k micro-batches of a step, s bytes of an element,
P bytes of what trains on one rank, W of the frozen weights there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from llama.adapters.kinds import kind_of
from llama.base.kinds import KINDS
from llama.fused.keeping import AGAIN
from llama.model.config import LINEARS, ROW_PARALLEL, ModelConfig
from llama.model.kept import Kept
from llama.planning.job import Job
from llama.settings import LoRAOptions


@dataclass(frozen=True)
class Work:
    """What one micro-batch asks of one rank."""

    products: float
    """FLOP of the base's products and of the output matrix, forward and backward."""
    again: float
    """FLOP of products that are computed again, since they were not kept."""
    attention: float
    """FLOP of scores and values in both passes, again included, above the diagonal nothing."""
    adapters: float
    """FLOP of A and B in both passes, again included."""
    element_bytes: float
    """That functions of single elements read and write: norms, rotary turn, SwiGLU, sums, dropout,
    the logits' softmax."""
    dense_bytes: float
    """Read and written where frozen weights are made dense for their products."""

    @property
    def flops(self) -> float:
        return self.products + self.again + self.attention + self.adapters


def work(job: Job) -> Work:
    """Of one micro-batch. In the method `full` every product has a gradient of its weight too."""
    config, tokens, p = job.config, job.tokens, job.tensor_parallel
    sizes = {name: rows * columns for name, (rows, columns) in _shapes(config).items()}
    each = 6.0 if job.lora is None else 4.0
    head = config.vocab_size * config.dim * supervised(job)
    again = sum(sizes[name] for level in job.kept for name in _again(level, job.fused))
    return Work(
        products=each * (config.n_layers * sum(sizes.values()) * tokens + head) / p,
        again=2.0 * again * tokens / p,
        attention=sum(map(_attention_passes, job.kept)) * _attention_forward(job) / p,
        adapters=_adapters(job),
        element_bytes=_element_bytes(job),
        dense_bytes=_dense_bytes(job),
    )


def _dense_bytes(job: Job) -> float:
    """Once in the forward, once in the backward pass, and again where a product is."""
    if not KINDS[job.base].MADE_DENSE:
        return 0.0
    size = 4 if job.precision == "fp32" else 2
    config, total = job.config, 0.0
    for name in LINEARS:
        uses = sum(2 + (name in _again(level, job.fused)) for level in job.kept)
        dense = size * prod(config.linear_shape(name)) / job.tensor_parallel
        total += uses * (dense + _held_bytes(job, name))
    return total


def supervised(job: Job) -> int:
    """Positions of a micro-batch that have a label: of a rank, if its tokens have their share."""
    whole = sum(job.lengths) - len(job.lengths) if job.supervised is None else job.supervised
    return -(-whole // job.sequence_parallel)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    return {name: config.linear_shape(name) for name in LINEARS}


def _again(level: Kept, fused: bool) -> Sequence[str]:
    """The fused block computes what `AGAIN` says; the plain one whole parts."""
    plain = Kept.INPUT if level < Kept.FFN_INPUTS else level
    return AGAIN[level if fused else plain]


def _attention_forward(job: Job) -> float:
    """FLOP of one forward pass in one block: two products for each pair of tokens and each head,
    halved, since no token sees a later one. Ranks that share tokens share the heads here."""
    config, squares = job.config, sum(length**2 for length in job.lengths)
    return 2.0 * config.n_heads * config.head_dim * squares / job.sequence_parallel


def _attention_passes(level: Kept) -> float:
    """The backward pass is five products for the forward's two (Dao, "FlashAttention-2", 2023)."""
    return 3.5 + (1.0 if level <= Kept.INPUT else 0.0)


def _targets(job: Job) -> tuple[str, ...]:
    return () if job.lora is None else job.lora.targets


def _adapters(job: Job) -> float:
    """A and B, and their two gradients each; A x and its like again where a block is."""
    if job.lora is None:
        return 0.0
    shapes = _shapes(job.config)
    elements = sum(width(job.lora) * sum(shapes[name]) for name in job.lora.targets)
    again = sum(2.0 for level in job.kept if level <= Kept.INPUT)
    products = elements * job.tokens * (6.0 * job.config.n_layers + again)
    read = _weights_read(job) * 2.0 * job.lora.rank
    return (products + read) / job.tensor_parallel


def _weights_read(job: Job) -> float:
    """Elements of frozen weights that adapters read and multiply, in each pass that they are in."""
    if job.lora is None or not kind_of(job.lora).READS_WEIGHT:
        return 0.0
    sizes = {name: rows * columns for name, (rows, columns) in _shapes(job.config).items()}
    passes = sum(2 if level <= Kept.INPUT else 1 for level in job.kept)
    return float(passes * sum(sizes[name] for name in job.lora.targets))


def _element_bytes(job: Job) -> float:
    """Each operand once, in the order of `llama/fused/block.py`, which reads and writes it once;
    the plain block does more, and its excess is measured (`time.PLAIN_BYTES`)."""
    config, p = job.config, job.tensor_parallel
    size = 4 if job.precision == "fp32" else 2
    width, ffn = config.dim, config.ffn_dim / p
    heads = (config.n_heads + config.n_kv_heads) * config.head_dim / p
    inputs = {name: columns for name, (_, columns) in _shapes(config).items()}
    dropped = sum(inputs[name] for name in _targets(job))
    forward = 2 * width + dropped + 2 * heads + 4 * width + 3 * ffn + 3 * width
    backward = 5 * ffn + 4 * width + 2 * heads + 4 * width + 3 * dropped
    total = 0.0
    for level in job.kept:
        total += forward + backward
        if level <= Kept.INPUT:
            total += 2 * width + 2 * heads + 4 * width
        elif level == Kept.FFN_INPUTS:
            total += 2 * width
    logits = supervised(job) * config.vocab_size / p * (size + 4 + size)
    read = 2 * size * _weights_read(job) / p  # for the rows' lengths, and for the product
    return total * job.tokens * size + logits + read


# Sizes


def width(lora: LoRAOptions) -> int:
    """Of the factors that adapters multiply by; R but where a kind has more of them."""
    return kind_of(lora).PATHS * lora.rank


def adapter_bytes(config: ModelConfig, lora: LoRAOptions, p: int, size: int) -> int:
    """P of adapters: what is on the side that is cut is cut, the rest whole on every rank."""
    each = adapter_tensors(config, lora)
    return size * config.n_layers * sum(n // p if is_cut else n for n, is_cut in each)


def adapter_tensors(config: ModelConfig, lora: LoRAOptions) -> Iterator[tuple[int, bool]]:
    """Of each tensor of a block's adapters its elements, and whether tensor-parallel ranks have it
    cut and not whole."""
    kind = kind_of(lora)
    for name in lora.targets:
        for tensor, shape in kind.shapes(*config.linear_shape(name), lora.rank).items():
            yield prod(shape), kind.CUT[tensor].of(name not in ROW_PARALLEL) is not None


def base_bytes(config: ModelConfig, p: int, size: int) -> int:
    """W, of one model shard."""
    return size * config.parameter_count() // p


def weights_bytes(job: Job) -> int:
    """Of the model's weights, those of one model shard as they are held."""
    p, size = job.tensor_parallel, 4 if job.precision == "fp32" else 2
    whole = base_bytes(job.config, p, size)
    blocks = [(size * prod(job.config.linear_shape(n)) // p, _held_bytes(job, n)) for n in LINEARS]
    return whole - job.config.n_layers * sum(dense - held for dense, held in blocks)


def _held_bytes(job: Job, name: str) -> int:
    """Of this rank's share of the layer `name` of one block."""
    shape, cut = list(job.config.linear_shape(name)), 1 if name in ROW_PARALLEL else 0
    shape[cut] //= job.tensor_parallel
    kind = KINDS[job.base]
    return kind(kind.empty(torch.Size(shape), job.dtype, torch.device("meta"), cut)).nbytes
