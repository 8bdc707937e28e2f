"""What is planned: one rank's share of one training step, told in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from llama.adapters.kinds import kind_of
from llama.fused.captured import LONG
from llama.metrics.hardware import GPUS_PER_NODE
from llama.model.config import ModelConfig
from llama.model.kept import KEPT, Checkpointing, Kept
from llama.parallel.sums import reads_shares
from llama.settings import LoRAOptions
from llama.settings.deepspeed_json import Resolved

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Zero:
    """The settings of DeepSpeed's `zero_optimization` that cost memory, in elements where they are
    sizes; the defaults are DeepSpeed's."""

    stage: int = 1
    reduce_bucket: int = 500_000_000
    allgather_bucket: int = 500_000_000
    overlap: bool = False
    """`overlap_comm`: two buckets in place of one."""
    prefetch: int = 50_000_000
    """`stage3_prefetch_bucket_size`"""
    persistent: int = 100_000
    """`stage3_param_persistence_threshold`: parameters up to it stay whole on every rank."""
    max_live: int = 1_000_000_000
    """`stage3_max_live_parameters`"""
    max_reuse: int = 1_000_000_000
    """`stage3_max_reuse_distance`"""
    offload_optimizer: bool = False
    """Masters, moments and their gradients lie in host memory."""
    offload_param: bool = False
    """Under ZeRO-3 the shares of the parameters lie in host memory. Not taken into account: the
    plan counts them as the device's, and so is too high by them."""

    @classmethod
    def of(cls, engine: dict[str, Any]) -> Zero:
        """Of a whole DeepSpeed configuration, as `Resolved.engine`."""
        section = engine.get("zero_optimization", {})
        stage = section.get("stage", 0)

        def offloaded(name: str) -> bool:
            return (section.get(name) or {}).get("device", "none") != "none"

        names = {
            "reduce_bucket": "reduce_bucket_size",
            "allgather_bucket": "allgather_bucket_size",
            "prefetch": "stage3_prefetch_bucket_size",
            "persistent": "stage3_param_persistence_threshold",
            "max_live": "stage3_max_live_parameters",
            "max_reuse": "stage3_max_reuse_distance",
        }
        sizes = {ours: int(section[theirs]) for ours, theirs in names.items() if theirs in section}
        overlap = section.get("overlap_comm")
        return cls(
            stage=stage,
            overlap=stage == 3 if overlap is None else bool(overlap),
            offload_optimizer=offloaded("offload_optimizer"),
            offload_param=offloaded("offload_param"),
            **sizes,
        )


@dataclass(frozen=True)
class Job:
    """One rank of a training run, as far as memory goes."""

    config: ModelConfig
    lora: LoRAOptions | None = field(default_factory=LoRAOptions)
    """None: every parameter trains."""
    base: str = "half"
    """How the frozen weights of the blocks are held, of `llama.base.kinds.KINDS`."""
    precision: Literal["fp16", "bf16", "fp32"] = "bf16"
    zero: Zero = field(default_factory=Zero)
    micro_batch: int = 1
    """Rows of one micro-batch on one data-parallel rank."""
    accumulation: int = 1
    """Micro-batches of one step."""
    seq_len: int = 1024
    """Tokens of a row."""
    documents: tuple[int, ...] | None = None
    """The lengths of the documents of one micro-batch; None: each row is one of `seq_len`."""
    supervised: int | None = None
    """Positions of one micro-batch that have a label; None: all that can have one."""
    checkpointing: Checkpointing | tuple[Kept, ...] = "none"
    """What the blocks keep, or of each block what it keeps. `auto` is the caller's to resolve."""
    fused: bool = False
    """Compiled kernels, and on CUDA the fused block: `--compile`."""
    tensor_parallel: int = 1
    sequence_parallel: int = 1
    """Ranks that share the tokens of a micro-batch."""
    data_parallel: int = 1
    """Ranks over which gradients are summed, those that share tokens among them."""
    base_sharers: int = 1
    """How many data-parallel ranks, which they divide, hold one frozen base together."""
    device: Literal["cpu", "cuda"] = "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return PRECISIONS[self.precision]

    @property
    def shares_base(self) -> bool:
        """Whether the base is cut over data-parallel ranks."""
        return self.base_sharers > 1

    @property
    def blocks_are_fused(self) -> bool:
        """Whether each block is one function, on a CUDA device (`llama/fused/install.py`)."""
        covered = self.lora is not None and kind_of(self.lora).FUSED
        return self.fused and self.zero.stage < 3 and covered

    @property
    def captured(self) -> bool:
        """Whether passes are CUDA graphs (`llama/fused/captured.py`)."""
        if self.device != "cuda" or not self.blocks_are_fused or self.precision == "fp32":
            return False
        within_host = self.base_sharers <= GPUS_PER_NODE  # else a base is gathered by a collective
        alone = self.tensor_parallel == 1 or reads_shares(self.tensor_parallel)
        alone = alone and self.sequence_parallel == 1
        return self.tokens <= LONG and alone and within_host

    @property
    def added_up(self) -> bool:
        """Whether gradients are added up before DeepSpeed has them (`Engine.add_up_gradients`)."""
        return self.captured or (self.fused and self.device == "cuda" and self.shares_base)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the documents of one micro-batch."""
        return self.documents or (self.seq_len,) * self.micro_batch

    @property
    def tokens(self) -> int:
        """Of one micro-batch, those that a rank has: the most, where they are shared."""
        return -(-sum(self.lengths) // self.sequence_parallel)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """What each block keeps."""
        if isinstance(self.checkpointing, str):
            return (KEPT[self.checkpointing],) * self.config.n_layers
        return self.checkpointing


def of_few_blocks(job: Job) -> tuple[tuple[Job, Job], Callable[[int, int], int]] | None:
    """`job` of two models of far fewer blocks, and what makes of a number of each that of `job`:
    what the second has beyond the first, any further blocks have as well. ZeRO-3's windows reach
    over several blocks, and a sharded base has rooms for several.

    None where that is not so: of few blocks, of such as keep different things, and where all of
    them train, for then what is most depends on how large the model is."""
    few, more = (8, 12) if job.zero.stage == 3 or job.shares_base else (2, 4)
    blocks = job.config.n_layers
    if blocks <= more or job.lora is None or len(set(job.kept)) > 1:
        return None

    def of(count: int) -> Job:
        kept = job.checkpointing if isinstance(job.checkpointing, str) else job.kept[:count]
        return replace(job, config=job.config.with_layers(count), checkpointing=kept)

    def whole(had: int, has: int) -> int:
        return has + (blocks - more) * (has - had) // (more - few)

    return (of(few), of(more)), whole


def host_bytes(job: Job) -> int:
    """Of block inputs in host memory, at most."""
    each = job.tokens * job.config.dim * job.dtype.itemsize
    return each * job.kept.count(Kept.HOST) if job.blocks_are_fused else 0


def settings_of(resolved: Resolved) -> dict[str, Any]:
    """The fields of a `Job` that the DeepSpeed JSON owns, by name."""
    return {
        "precision": resolved.precision,
        "zero": Zero.of(resolved.engine),
        "micro_batch": resolved.micro_batch,
        "accumulation": resolved.accumulation,
    }
