"""The arithmetic of one training step, and the bytes that it puts on the wire: formulas over the
sizes of a model and of a job, each of one rank.

Letters: T tokens of a micro-batch, D width, F feed-forward width, R rank of the adapters, p the
tensor-parallel degree, n data-parallel ranks, k micro-batches of a step, s bytes of an element,
P bytes of what trains on one rank, W of the frozen weights there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from llama.adapters.kinds import kind_of
from llama.base.kinds import KINDS
from llama.fused.keeping import AGAIN
from llama.model.config import LINEARS, ROW_PARALLEL, ModelConfig
from llama.model.kept import Kept
from llama.parallel.sharded import rooms
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


@dataclass(frozen=True)
class Traffic:
    """Bytes that leave one rank in a step."""

    exchanged: float
    """Over data-parallel ranks: gradients, parameters, and weights under ZeRO-3."""
    gathered: float
    """Over those that share a base: its blocks."""
    summed: float
    """Over tensor-parallel ranks."""
    traded: float
    """Over ranks that share tokens: heads for tokens, around attention."""
    from_host: float
    """From host memory, of offloaded weights."""

    @property
    def total(self) -> float:
        """On the wire."""
        return self.exchanged + self.gathered + self.summed + self.traded


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


# On the wire


def traffic(job: Job) -> Traffic:
    """Of one step."""
    size = 4 if job.precision == "fp32" else 2
    n, k, p = job.data_parallel, job.accumulation, job.tensor_parallel
    whole = base_bytes(job.config, p, size)
    trained = whole if job.lora is None else adapter_bytes(job.config, job.lora, p, size)
    frozen = whole if job.zero.stage == 3 else 0
    summed = k * summed_bytes(job.config, job.lora, job.tokens, supervised(job), job.kept, size)
    offloaded = 2 * k * whole / n if job.zero.offload_param else 0.0
    return Traffic(
        exchanged=exchanged_bytes(job.zero.stage, n, k, trained, frozen, job.lora is None),
        gathered=k * base_gathered(job.config, job.base_sharers, p, size),
        summed=2 * (p - 1) / p * summed,
        traded=k * traded_bytes(job.config, job.tokens, job.sequence_parallel, p, job.kept, size),
        from_host=offloaded,
    )


def width(lora: LoRAOptions) -> int:
    """Of the factors that adapters multiply by; R but where a kind has more of them."""
    return kind_of(lora).PATHS * lora.rank


def adapter_bytes(config: ModelConfig, lora: LoRAOptions, p: int, size: int) -> int:
    """P of adapters: what is on the side that is cut is cut, the rest whole on every rank."""
    kind, count = kind_of(lora), 0
    for name in lora.targets:
        for tensor, shape in kind.shapes(*config.linear_shape(name), lora.rank).items():
            cut = kind.CUT[tensor].of(name not in ROW_PARALLEL)
            count += prod(shape) // (1 if cut is None else p)
    return size * config.n_layers * count


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


def exchanged_bytes(
    stage: int, n: int, k: int, trained: float, frozen: float, full: bool = False
) -> float:
    """Bytes that leave a rank over the data-parallel group: the table of docs/scaling.md. ZeRO-2
    and 3 send gradients after each micro-batch; ZeRO-3 gathers the weights in each forward and
    each backward pass, and where all of them train has none to send afterwards."""
    gradients = trained * (k if stage >= 2 else 1)
    parameters = 0.0 if full and stage == 3 else trained
    gathered = 2 * k * frozen if stage == 3 else 0.0
    return (n - 1) / n * (gradients + parameters + gathered)


def base_gathered(config: ModelConfig, n: int, p: int, size: int) -> float:
    """Bytes that leave each of `n` ranks that share a base in a micro-batch: embedding and head
    once, each block twice, but for those that still lie in their rooms when a pass turns round."""
    vocabulary = config.vocab_size * config.dim
    blocks = config.parameter_count() - vocabulary * (1 if config.tied_embedding else 2)
    turned = 1 - rooms(config.n_layers) / config.n_layers
    return (n - 1) / n * size / p * 2 * (vocabulary + turned * blocks)


def summed_bytes(
    config: ModelConfig,
    lora: LoRAOptions | None,
    tokens: int,
    supervised: int,
    kept: Sequence[Kept],
    size: int,
) -> float:
    """Bytes of the activations that tensor parallelism sums in a micro-batch: of each layer two in
    the forward, two in the backward pass, and one in between where the block is computed again,
    which stops before the second; for each adapter one of its factors' width, again where it is on
    a layer cut by its inputs; the embedding's, and the gradient of the last hidden states."""
    names = lora.targets if lora else ()
    rank = width(lora) if lora else 0
    total = 0.0
    for level in kept:
        again = level < Kept.FFN_INPUTS
        rows = sum(name in ROW_PARALLEL for name in names) if again else 0
        total += tokens * ((5 if again else 4) * config.dim + rank * (len(names) + rows))
    return size * (total + (tokens + supervised) * config.dim)


def traded_bytes(
    config: ModelConfig, tokens: int, ranks: int, p: int, kept: Sequence[Kept], size: int
) -> float:
    """Bytes that leave a rank in a micro-batch as heads are traded for tokens, of which it has
    `tokens`: of each layer q, k and v one way and the heads' output the other, in the forward and
    in the backward pass, and those of them once more that are computed again. Of kv heads there are
    as many as ranks at least, each being sent to all that need it."""
    heads, kv_heads = config.n_heads // p, max(config.n_kv_heads // p, ranks)
    traded = 0
    for of_qkv, of_output in map(trades, kept):
        traded += of_qkv * (heads + 2 * kv_heads) + of_output * heads
    return (ranks - 1) / ranks * tokens * config.head_dim * size * traded


def trades(level: Kept) -> tuple[int, int]:
    """How often a block that keeps `level` has q, k and v traded, and how often its heads' output:
    in the forward and the backward pass, and where they are computed again."""
    return 2 + (level < Kept.FFN_INPUTS), 2 + (level <= Kept.INPUT)


def sums(lora: LoRAOptions | None, kept: Sequence[Kept], fused: bool) -> int:
    """How many sums those are, in the blocks: of adapters one for each, or of a fused block one of
    their factors' gradients and two that `llama/fused/own_rows.py` tells of."""
    adapters = 0
    if lora is not None:
        adapters = 3 if fused else len(lora.targets)
    return sum((5 if level < Kept.FFN_INPUTS else 4) + adapters for level in kept)
