"""How long a step takes on a named GPU: each kind of work at the share of the GPU's rates that was
measured for it, what the host takes to start it, and the bytes on the wire at the links' rates.

Held to what was measured by `tests/unit/planning/test_time.py`, whose table is docs/plan.md's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from llama.base.kinds import KINDS
from llama.metrics.hardware import GPU, GPUS_PER_NODE, HOST, Link
from llama.model.kept import Kept
from llama.parallel.sums import PART, parts_of, reads_shares
from llama.planning.job import Job
from llama.planning.wire import Traffic, block_sums_of, trades_of, traffic
from llama.planning.work import Work, adapter_bytes, base_bytes, work


@dataclass(frozen=True)
class Blocks:
    """What one way to run a block costs beside its arithmetic."""

    bytes_moved: float
    """By functions of single elements, times what each operand once would be."""
    start: float
    """Seconds in which the host starts one block, forward and backward."""
    again: dict[Kept, float]
    """More of them where parts are computed again, by what is kept."""
    target: float
    """For each adapter of a block."""
    target_again: float
    """For each, where the block keeps only its input."""
    adapters: float = 0.034
    """The share of a GPU's product rate in products as thin as an adapter's rank."""


PLAIN = Blocks(
    2.6, 0.8e-3, {Kept.INPUT: 2.75e-3, Kept.FFN_INPUTS: 1.0e-3, Kept.ALL: 0.0}, 0.53e-3, 0.17e-3
)
COMPILED = Blocks(
    1.7, 0.8e-3, {Kept.INPUT: 2.75e-3, Kept.FFN_INPUTS: 1.0e-3, Kept.ALL: 0.0}, 0.53e-3, 0.17e-3
)
"""The plain block on compiled kernels: under ZeRO-3, and where all parameters train."""
FUSED = Blocks(
    1.0,
    1.8e-3,
    {**dict.fromkeys((Kept.INPUT, Kept.ATTENTION, Kept.MIDDLE), 0.4e-3)}
    | {Kept.FFN_INPUTS: 0.25e-3, Kept.ALL: 0.0},
    *(0.52e-3, 0.2e-3),
    adapters=0.045,
)

PRODUCTS, ATTENTION, BANDWIDTH = 0.73, 0.42, 0.74
"""Shares: of a GPU's product rate in large products and in attention; of its memory's in functions
of single elements."""
OF_HALF = {"fp8": 0.62}
"""What products of a base take, quantising and all, of those of `half`; 1 where it is not said."""
EVENNESS = 4.0
"""Host and device work side by side, and a micro-batch takes the longer of both: the fourth root of
the sum of fourth powers, since neither is the longer one throughout."""
MICRO_BATCH, STEP = 10e-3, 15e-3
"""Seconds of the host for each micro-batch and for each step, whatever the model's size."""
GRAPH, GRAPH_STEP = 2e-3, 3.5e-3
"""The same where passes are CUDA graphs."""
STEPPED = 0.006e-3
"""Of the latter, for each trained tensor."""
ADAM_BYTES = 32
"""For each parameter that trains: gradient, master and two moments, read and written."""
HOST_ADAM = 1e9
"""Parameters a second of the optimizer in host memory. Not measured here."""
GATHER = 1.6e-3
"""Seconds of the host for each gathering of a layer's weights under ZeRO-3."""
SUMS_WAIT, SUMS_READ, SUMS_HIDDEN = 1.6, 0.9, 0.4
"""What a tensor-parallel sum takes, times its bytes at the link's rate: ranks wait for each other,
and messages are smaller than the one that the rate was measured with; where the kernel that
wants the sum reads it from the other GPU; and where shares are copied while a product goes on."""


@dataclass(frozen=True)
class Place:
    """Where a job runs."""

    gpu: GPU
    nodes: int = 1
    network: Link | None = None
    """Between nodes; of no account on one."""

    @property
    def between(self) -> Link | None:
        """What joins the nodes, where there are several."""
        return self.network if self.nodes > 1 else None


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    device: float
    """Arithmetic and memory traffic of all micro-batches."""
    host: float
    """What the host takes to start them."""
    links: float
    """Of that which is not hidden behind either: sums, gradients, gathered weights."""
    fixed: float
    """The optimizer, and what a step costs by itself."""
    total: float
    parts: dict[str, float] = field(default_factory=dict)
    """`device` by kind of work, and `links` by kind of exchange."""

    @property
    def bound_by(self) -> str:
        """What the step waits for most."""
        found = {"the GPU": self.device, "the host": self.host, "the links": self.links}
        return max(found, key=lambda name: found[name])


def step_time(job: Job, place: Place) -> StepTime:
    """Of one optimizer step of `job`; all ranks take the same."""
    done, sent = work(job), traffic(job)
    parts = device_seconds(job, place.gpu, done)
    device, host = sum(parts.values()), host_seconds(job)
    summed = sum_seconds(job, place.gpu.link, sent.summed / job.accumulation)
    traded = trade_seconds(job, place.gpu.link, sent.traded / job.accumulation)
    gathered, exchanged = _data_seconds(job, place, sent)
    if job.shares_base:  # while the block before is computed
        gathered = max(0.0, gathered - job.accumulation * device)
    busy = device + gathered / job.accumulation
    micro = (busy**EVENNESS + host**EVENNESS) ** (1 / EVENNESS) + summed + traded
    own = GRAPH_STEP + STEPPED * _trained_tensors(job) if job.captured else STEP
    fixed = own + _adam_seconds(job, place.gpu)
    k = job.accumulation
    return StepTime(
        device=k * device,
        host=k * host,
        links=k * (summed + traded) + gathered + exchanged,
        fixed=fixed,
        total=k * micro + exchanged + fixed,
        parts={name: k * seconds for name, seconds in parts.items()}
        | {"tensor-parallel sums": k * summed, "heads traded for tokens": k * traded}
        | {"gathered weights": gathered}
        | {"gradients and parameters": exchanged},
    )


def way_of(job: Job) -> Blocks:
    """How the job's blocks run."""
    if not job.fused:
        return PLAIN
    return FUSED if job.blocks_are_fused else COMPILED


def device_seconds(job: Job, gpu: GPU, done: Work) -> dict[str, float]:
    """Of one micro-batch, by kind of work."""
    rate, of_half = gpu.rate(job.precision), OF_HALF.get(job.base, 1.0)
    return {
        "products": of_half * done.products / (PRODUCTS * rate),
        "products again": of_half * done.again / (PRODUCTS * rate),
        "weights made dense": done.dense_bytes / (BANDWIDTH * gpu.bandwidth),
        "attention": done.attention / (ATTENTION * rate),
        "adapters": done.adapters / (way_of(job).adapters * rate),
        "element by element": way_of(job).bytes_moved
        * done.element_bytes
        / (BANDWIDTH * gpu.bandwidth),
    }


def host_seconds(job: Job) -> float:
    """That the host needs to start one micro-batch; the same for any number of tokens."""
    if job.captured:
        return GRAPH
    way, targets = way_of(job), len(job.lora.targets) if job.lora else 0
    total = MICRO_BATCH
    for level in job.kept:
        known = level if level in way.again else Kept.INPUT
        total += way.start + way.again[known] + targets * way.target
        total += targets * way.target_again if level <= Kept.INPUT else 0.0
    if job.zero.stage == 3 and job.data_parallel > 1:
        total += GATHER * 2 * 7 * job.config.n_layers
    return total


def _trained_tensors(job: Job) -> int:
    """Of adapters: two on each layer."""
    return 2 * len(job.lora.targets) * job.config.n_layers if job.lora else 0


def _adam_seconds(job: Job, gpu: GPU) -> float:
    """Of the optimizer on this rank's share of what trains."""
    size = 4 if job.precision == "fp32" else 2
    share = job.data_parallel if job.zero.stage else 1
    count = _trained_bytes(job, size) / size / share
    if job.zero.offload_optimizer:
        return count / HOST_ADAM
    return count * ADAM_BYTES / (BANDWIDTH * gpu.bandwidth)


def _trained_bytes(job: Job, size: int) -> float:
    if job.lora is None:
        return base_bytes(job.config, job.tensor_parallel, size)
    return adapter_bytes(job.config, job.lora, job.tensor_parallel, size)


# Links


def sum_seconds(job: Job, link: Link, bytes_sent: float) -> float:
    """Of a micro-batch's tensor-parallel sums, within a node: nothing is computed meanwhile."""
    number = len(block_sums_of(job))
    seconds = tensor_seconds(link, job.tensor_parallel, bytes_sent, number)
    are_read = job.blocks_are_fused and reads_shares(job.tensor_parallel) and link.reaches_memory
    if not are_read:
        return seconds * SUMS_WAIT
    kind, width = KINDS[job.base], job.config.ffn_dim // job.tensor_parallel
    in_parts = len(parts_of(slice(0, job.tokens), width, PART)) > 1
    hidden = in_parts and kind.ADDS and not kind.MADE_DENSE  # `llama/fused/overlapped.py`
    return seconds * (SUMS_HIDDEN if hidden else SUMS_READ)


def trade_seconds(job: Job, link: Link, bytes_sent: float) -> float:
    """Of a micro-batch's trades of heads for tokens, within a node: each rank sends to every other
    at once, and nothing is computed meanwhile."""
    if job.sequence_parallel == 1:
        return 0.0
    number = sum(map(sum, trades_of(job)))
    return bytes_sent / link.bytes_per_second + number * link.hop


def tensor_seconds(link: Link, p: int, bytes_sent: float, number: int) -> float:
    """`number` sums over p ranks by rings, `bytes_sent` leaving each."""
    hops = 0 if p == 1 else number * 2 * (p - 1)
    return bytes_sent / link.bytes_per_second + hops * link.hop


def _data_seconds(job: Job, place: Place, sent: Traffic) -> tuple[float, float]:
    """Seconds of gathering weights, and of exchanging gradients and parameters, in a step."""
    n, p, k = job.data_parallel, job.tensor_parallel, job.accumulation
    offloaded = sent.from_host / HOST.bytes_per_second
    if n == 1:
        return offloaded, 0.0
    size = 4 if job.precision == "fp32" else 2
    trained = 0.0 if job.lora is None and job.zero.stage == 3 else _trained_bytes(job, size)
    kept = (n - 1) / n * trained * ((k if job.zero.stage >= 2 else 1) + 1)
    rounds = 2 * k * job.config.n_layers
    if job.shares_base:
        m = job.base_sharers
        gathered = ring_seconds(group_place(place, n, m), m, p, sent.gathered, rounds)
    else:
        weights = max(0.0, sent.exchanged - kept)
        gathered = ring_seconds(place, n, p, weights, rounds if job.zero.stage == 3 else 0)
    exchanged = ring_seconds(place, n, p, kept, 2) + small_sums_seconds(place, n)
    return max(gathered, offloaded), exchanged


def group_place(place: Place, n: int, m: int) -> Place:
    """Where m data-parallel ranks in a row lie, of n that each node has as many of: of the groups
    that they form the one that is spread over most nodes."""
    each = n // place.nodes
    nodes = max((first + m - 1) // each - first // each + 1 for first in range(0, n, m))
    return replace(place, nodes=nodes)


def ring_seconds(place: Place, n: int, p: int, bytes_sent: float, rounds: int) -> float:
    """An exchange over n data-parallel ranks, of p tensor-parallel ones each: rings that run
    through the GPUs of a node before they leave it, so that what crosses a node's edge is what
    leaves one rank, for each shard."""
    inside, between = place.gpu.link, place.between
    within = bytes_sent / inside.bytes_per_second if p < GPUS_PER_NODE else 0.0
    across = p * bytes_sent / between.bytes_per_second if between else 0.0
    ring = (n - place.nodes) * inside.hop + place.nodes * between.hop if between else 0.0
    return max(within, across) + rounds * (ring or (n - 1) * inside.hop)


def small_sums_seconds(place: Place, n: int) -> float:
    """Six sums of a few bytes in a step: losses, tokens, the norm, whether it is finite; each by a
    tree over n ranks."""
    return 6 * 2 * math.ceil(math.log2(n)) * (place.between or place.gpu.link).hop


def mfu(job: Job, place: Place, step: StepTime) -> float:
    """The share of the GPU's product rate that the step's necessary arithmetic is."""
    return job.accumulation * work(job).products / step.total / place.gpu.rate(job.precision)


def tokens_per_second(job: Job, step: StepTime) -> float:
    """Of all ranks together."""
    return job.tokens * job.accumulation * job.data_parallel / step.total
