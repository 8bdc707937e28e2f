"""The bytes that a training step puts on the wire: formulas over the sizes of a model and of a job,
each of one rank. The table of docs/scaling.md.

Letters: as in `work.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama.base.kinds import KINDS
from llama.fused.block import GATE_UP, QKV
from llama.fused.own_rows import FEWEST
from llama.model.config import ROW_PARALLEL, ModelConfig
from llama.model.kept import Kept
from llama.parallel.sharded import rooms
from llama.planning.job import Job
from llama.planning.work import adapter_bytes, adapter_tensors, base_bytes, supervised, width
from llama.settings import LoRAOptions


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


def traffic(job: Job) -> Traffic:
    """Of one step."""
    size = 4 if job.precision == "fp32" else 2
    n, k, p = job.data_parallel, job.accumulation, job.tensor_parallel
    whole = base_bytes(job.config, p, size)
    trained = whole if job.lora is None else adapter_bytes(job.config, job.lora, p, size)
    frozen = whole if job.zero.stage == 3 else 0
    sums = block_sums_of(job)
    summed = k * summed_bytes(job.config, job.tokens, supervised(job), sums, size)
    traded = traded_bytes(job.config, job.tokens, job.sequence_parallel, p, trades_of(job), size)
    offloaded = 2 * k * whole / n if job.zero.offload_param else 0.0
    return Traffic(
        exchanged=exchanged_bytes(job.zero.stage, n, k, trained, frozen, job.lora is None),
        gathered=k * base_gathered(job.config, job.base_sharers, p, size),
        summed=2 * (p - 1) / p * summed,
        traded=k * traded,
        from_host=offloaded,
    )


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


def block_sums(
    config: ModelConfig,
    lora: LoRAOptions | None,
    tokens: int,
    kept: Sequence[Kept],
    fused: bool = False,
    by_rows: bool = False,
) -> list[int]:
    """The elements of each sum that tensor parallelism takes in the blocks in a micro-batch: two in
    the forward, two in the backward pass, and one in between where `wo`'s product is computed
    again. For a plain block's adapters one of their factors' width each, again where it is on a
    layer cut by its inputs. For those of a `fused` one the gradients of all that each rank has
    whole, and `by_rows` their factors' width for each of the norms that they read
    (`llama/fused/own_rows.py`)."""
    names = lora.targets if lora else ()
    rank = width(lora) if lora else 0
    found: list[int] = []
    for level in kept:
        again = level < (Kept.MIDDLE if fused else Kept.FFN_INPUTS)
        found += (5 if again else 4) * [tokens * config.dim]
        if fused and lora is not None:
            read = [sum(name in names for name in readers) for readers in (QKV, GATE_UP)]
            found += [tokens * rank * count for count in read if count and by_rows]
            found.append(sum(n for n, is_cut in adapter_tensors(config, lora) if not is_cut))
        else:
            rows = sum(name in ROW_PARALLEL for name in names) if again else 0
            found += (len(names) + rows) * [tokens * rank]
    return found


def block_sums_of(job: Job) -> list[int]:
    """Those of a micro-batch of `job`."""
    by_rows = job.tokens >= FEWEST and KINDS[job.base].ADDS
    return block_sums(job.config, job.lora, job.tokens, job.kept, job.blocks_are_fused, by_rows)


def summed_bytes(
    config: ModelConfig, tokens: int, supervised: int, of_blocks: Sequence[int], size: int
) -> int:
    """Bytes of what tensor parallelism sums in a micro-batch: in its blocks, and once the
    embedding's output and the gradient of the last hidden states."""
    return size * (sum(of_blocks) + (tokens + supervised) * config.dim)


def trades(level: Kept, fused: bool, on_output: bool) -> tuple[int, int]:
    """How often a block that keeps `level` has q, k and v traded, and how often its heads' output:
    in the forward and the backward pass, and where they are computed again. A `fused` block keeps
    its output by heads, and trades it again for what is made of it in the backward pass: the
    residual stream, and the gradient of an adapter `on_output`, on `wo`."""
    again = level < Kept.FFN_INPUTS
    if not fused:
        return 2 + again, 2 + again
    return 2 + again, 2 + (level < Kept.MIDDLE) + on_output


def trades_of(job: Job) -> list[tuple[int, int]]:
    """Those of each block of `job`."""
    on_output = job.lora is not None and "wo" in job.lora.targets
    return [trades(level, job.blocks_are_fused, on_output) for level in job.kept]


def traded_bytes(
    config: ModelConfig,
    tokens: int,
    ranks: int,
    p: int,
    of_blocks: Sequence[tuple[int, int]],
    size: int,
) -> float:
    """Bytes that leave a rank in a micro-batch as heads are traded for tokens, of which it has
    `tokens`: of each block q, k and v one way and the heads' output the other, as often as
    `trades` says. Of kv heads there are as many as ranks at least, each being sent to all that need
    it."""
    heads, kv_heads = config.n_heads // p, max(config.n_kv_heads // p, ranks)
    traded = sum(qkv * (heads + 2 * kv_heads) + output * heads for qkv, output in of_blocks)
    return (ranks - 1) / ranks * tokens * config.head_dim * size * traded
