"""`--suggest`: the fastest way to train a model on given GPUs that their memory holds.

All ways are put in the order of their predicted speed, which is arithmetic, and then asked one
after the other whether they fit, which takes a trace; the first that does is taken. Ways of nearly
one speed go by what can go wrong with them: fewer shards and a lower stage first.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from llama.assembly.limits import degree_problems
from llama.commands.plan.inputs import Inputs, plan_of
from llama.errors import UserError
from llama.methods.kinds import KINDS
from llama.metrics.hardware import GIB
from llama.model.kept import Checkpointing
from llama.model.presets import PRESETS
from llama.planning.fit import estimate
from llama.planning.job import Job, Zero
from llama.planning.plan import Plan
from llama.planning.time import step_time, tokens_per_second
from llama.planning.work import adapter_bytes, weights_bytes
from llama.settings import PlanOptions, TrainOptions
from llama.settings.base import HALF
from llama.settings.options.declare import declared
from llama.settings.sharing import ALL, HOST, WHOLE, sharers

FILE = "deepspeed.json"
BATCH = 16
"""Rows of an optimizer step, where --batch does not say."""
SAME = 1.02
"""Ways whose speeds lie within so much of each other for each step of trouble count as equal."""
LARGEST = 64
"""Rows of a micro-batch that are tried."""
FILLED = 0.92
"""Of a GPU's memory that a suggestion uses at most: the allocator comes to hold more than it gives
out as a run goes on."""
WEIGHTS = "MODEL"
"""Stands in a command line for a folder that the user has."""
_SPOKEN = {
    "lora": ("seq_len", "checkpointing", "lora.rank", "lora.targets"),
    "full": ("seq_len", "checkpointing"),
}
"""By method the options of `train` that a suggestion's command gives though they be the default."""
_OWN = ("deepspeed", "model", "output_dir", "compile", "override", "json")
"""Options of both commands that mean each command's own, or are given otherwise."""
_BUCKET = 10_000_000
_SHARED = {WHOLE: 0, HOST: 1, ALL: 2}
"""The trouble of a base that ranks share; of ZeRO-3, which cuts up all that there is, it is 2."""
_KEEPING: tuple[Checkpointing, ...] = ("none", "ffn", "block")


@dataclass(frozen=True)
class Way:
    """One way to train the model."""

    tensor_parallel: int
    stage: int
    offload: bool
    checkpointing: Checkpointing
    micro_batch: int
    shard_base: str
    """Of the words of `--shard_base`."""
    fused: bool
    """Whether the blocks can run as one function each, which is then how they do."""

    @property
    def trouble(self) -> int:
        """What it asks of the machines, in steps."""
        shards = self.tensor_parallel.bit_length() - 1
        return shards + max(0, self.stage - 1) + _SHARED[self.shard_base] + 4 * self.offload


@dataclass(frozen=True)
class Suggestion:
    """What was found."""

    way: Way
    deepspeed: dict[str, Any]
    options: PlanOptions
    plan: Plan

    @property
    def model(self) -> str:
        """What `--model` is to be given: of a shape that was only named, nobody knows where its
        weights lie."""
        return WEIGHTS if self.options.model in PRESETS else self.options.model

    @property
    def other_batch(self) -> str | None:
        """A line where a step has not the rows that were asked for."""
        job, asked = self.plan.job, asked_batch(self.options)
        rows = job.micro_batch * job.accumulation * job.data_parallel
        if rows == asked:
            return None
        ranks = f"{job.data_parallel} data-parallel ranks"
        return f"--batch {asked} does not divide over {ranks}: a step has {rows} rows"

    def command(self, folder: Path) -> str:
        """The command line that trains so: what was chosen, what a run is best told in so many
        words, and all else that was given and is not the default of `train`."""
        options = self.options
        start = ["--num_gpus", str(options.gpus)] if options.nodes == 1 else ["--hostfile", "hosts"]
        words = ["deepspeed", *start, "--module", "llama.commands.train"]
        words += ["--deepspeed", str(folder / FILE), "--model", self.model]
        for option in declared(TrainOptions):
            value = _value(options, option.name)
            spoken = option.name in _SPOKEN[options.method]
            if option.name not in _OWN and (spoken or value not in (None, option.default)):
                words += _given(option.name, value)
        return shlex.join(words)

    def unsaid(self) -> list[str]:
        """What the user is to put into the command before it is run."""
        lines = []
        if self.model == WEIGHTS:
            lines.append(
                f"{WEIGHTS}: the folder, file or hub name of {self.options.model}'s weights"
            )
        if not self.options.data:
            lines.append("as it stands it trains on the bundled rows: add --data and your own")
        return lines


def _value(options: PlanOptions, name: str) -> Any:
    """Of an option of `train`, dotted where it is nested; None where `plan` does not have it."""
    found: Any = options
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _given(name: str, value: Any) -> list[str]:
    """The words that give an option its value."""
    if isinstance(value, list):
        return [word for each in cast("list[Any]", value) for word in (f"--{name}", str(each))]
    if isinstance(value, bool):
        return [f"--{name}", str(value).lower()]
    if isinstance(value, tuple):
        each = cast("tuple[str | tuple[str, str], ...]", value)
        return [f"--{name}", ",".join(e if isinstance(e, str) else "=".join(e) for e in each)]
    return [f"--{name}", str(value)]


def suggest(inputs: Inputs) -> Suggestion:
    """Raises `UserError` where no way fits."""
    available = int(FILLED * inputs.place.gpu.memory)
    closest = min(least_bytes(job_of(inputs, way)) for way in ways(inputs))
    traced: list[float] = []
    for way in ordered(inputs):
        job = job_of(inputs, way)
        if least_bytes(job) > available:
            continue
        traced.append(estimate(job))
        if traced[-1] > available:
            continue
        options = options_of(inputs, way)
        document = deepspeed_of(inputs, way)
        plan = plan_of(inputs, document, options)
        if plan.memory.used_bytes <= available:
            return Suggestion(way, document, options, plan)
        traced[-1] = plan.memory.used_bytes
    raise UserError(_nothing_fits(inputs, min(traced, default=closest)))


def _nothing_fits(inputs: Inputs, least: float) -> str:
    options = inputs.options
    return (
        f"--suggest: no way to train {options.model} on {inputs.world_size} x {options.gpu} at "
        f"--seq_len {options.seq_len} fits: each needs at least {least / GIB:.1f} GiB of "
        f"{FILLED * inputs.place.gpu.memory / GIB:.1f}; take more GPUs, larger ones or shorter "
        "rows (weights in host memory are counted as the GPU's, so that ZeRO-3 with offload_param "
        "may fit all the same)"
    )


def ordered(inputs: Inputs) -> list[Way]:
    """All ways, the fastest first."""

    def cost(way: Way) -> tuple[float, int]:
        job = job_of(inputs, way)
        speed = tokens_per_second(job, step_time(job, inputs.place))
        return SAME**way.trouble / speed, way.trouble

    return sorted(ways(inputs), key=cost)


def ways(inputs: Inputs) -> Iterator[Way]:
    """Every way worth asking about. Tensor parallelism stays within a node."""
    options, world = inputs.options, inputs.world_size
    degrees = [
        p
        for p in range(1, options.gpus + 1)
        if options.gpus % p == 0 and not degree_problems(p, inputs.config)
    ]
    for p, keeping in product(degrees, _KEEPING):
        n = world // p
        stages = [(1, False), (3, True)] if options.base == HALF else [(1, False)]
        if n > 1 and options.base == HALF:
            stages += [(3, False)] + ([(2, False)] if options.method == "full" else [])
        rows = rows_of_rank(inputs, n)
        sizes = [size for size in range(1, LARGEST + 1) if rows % size == 0]
        for (stage, offload), size in product(stages, sizes):
            fused = p == 1 and stage < 3 and options.method == "lora"
            for word in _sharings(inputs, p) if stage == 1 else [WHOLE]:
                yield Way(p, stage, offload, keeping, size, word, fused)


def rows_of_rank(inputs: Inputs, data_parallel: int) -> int:
    """Rows that each of so many ranks takes in a step: --batch, rounded up where it does not
    divide."""
    return -(-asked_batch(inputs.options) // data_parallel)


def asked_batch(options: PlanOptions) -> int:
    """Rows of an optimizer step that the user wants."""
    return BATCH if options.batch is None else options.batch


def _sharings(inputs: Inputs, degree: int) -> list[str]:
    """Words of `--shard_base`, each of which comes to another number of ranks; only where no GPU
    holds the weights that are a rank's, for nothing is gathered of those that it holds."""
    options = inputs.options
    held = weights_bytes(Job(inputs.config, base=options.base, tensor_parallel=degree))
    if options.method != "lora" or held <= FILLED * inputs.place.gpu.memory:
        return [WHOLE]
    found = {sharers(word, degree, inputs.ranks): word for word in (ALL, HOST, WHOLE)}
    return list(reversed(found.values()))


def job_of(inputs: Inputs, way: Way) -> Job:
    """Of full rows."""
    options = inputs.options
    n = inputs.world_size // way.tensor_parallel
    document = deepspeed_of(inputs, way)
    return Job(
        inputs.config,
        KINDS[options.method].adapters(options.lora),
        base=options.base,
        precision="bf16" if inputs.place.gpu.bf16 else "fp16",
        zero=Zero.of(document),
        micro_batch=way.micro_batch,
        accumulation=document["gradient_accumulation_steps"],
        seq_len=options.seq_len,
        checkpointing=way.checkpointing,
        fused=way.fused,
        tensor_parallel=way.tensor_parallel,
        data_parallel=n,
        base_sharers=sharers(way.shard_base, way.tensor_parallel, inputs.ranks),
    )


def least_bytes(job: Job) -> float:
    """What the job holds at the very least, by arithmetic: weights, what trains, what is kept."""
    config, p, n = job.config, job.tensor_parallel, job.data_parallel
    weights = weights_bytes(job)
    holders = n if job.zero.stage == 3 else job.base_sharers
    held = 0.0 if job.zero.offload_param else weights / holders
    trained = weights if job.lora is None else adapter_bytes(config, job.lora, p, 2)
    states = 0.0 if job.zero.offload_optimizer else 6 * trained / (n if job.zero.stage else 1)
    return held + states + 2 * config.n_layers * job.tokens * _kept(job)


def _kept(job: Job) -> float:
    """Elements of a token that each block keeps at the least (`llama/model/kept.py`)."""
    config, p = job.config, job.tensor_parallel
    heads = config.head_dim / p
    kept = float(config.dim)
    if job.checkpointing != "block":
        kept += config.dim + heads * (2 * config.n_heads + 2 * config.n_kv_heads)
    if job.checkpointing == "none":
        kept += 2 * config.ffn_dim / p
    return kept


def options_of(inputs: Inputs, way: Way) -> PlanOptions:
    """The options of the plan that the suggestion is."""
    return replace(
        inputs.options,
        tensor_parallel=way.tensor_parallel,
        checkpointing=way.checkpointing,
        shard_base=way.shard_base,
        compile="auto" if way.fused else "false",
    )


def deepspeed_of(inputs: Inputs, way: Way) -> dict[str, Any]:
    """The DeepSpeed JSON of a way, as ds_configs/ has them."""
    n = inputs.world_size // way.tensor_parallel
    zero: dict[str, Any] = {"stage": way.stage, "reduce_bucket_size": _BUCKET}
    if way.stage < 3:
        zero["allgather_bucket_size"] = _BUCKET
    else:
        zero |= {
            "stage3_prefetch_bucket_size": 100_000_000,
            "stage3_param_persistence_threshold": 200_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 500_000_000,
        }
    if way.offload:
        host = {"device": "cpu", "pin_memory": True}
        zero |= {"offload_param": host, "offload_optimizer": host}
    half: dict[str, Any] = {"bf16": {"enabled": True}}
    if not inputs.place.gpu.bf16:
        half = {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}}
    rate: dict[str, Any] = {"total_num_steps": "auto", "warmup_num_steps": "auto"}
    adam = {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    return {
        "train_micro_batch_size_per_gpu": way.micro_batch,
        "gradient_accumulation_steps": rows_of_rank(inputs, n) // way.micro_batch,
        "gradient_clipping": 1.0,
        **half,
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {**rate, "warmup_min_lr": "auto", "warmup_type": "linear"},
        },
        "zero_optimization": zero,
    }
