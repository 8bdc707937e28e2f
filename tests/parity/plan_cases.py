"""The runs whose planned memory is compared with what a real step of them holds on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from llama.model.config import LINEARS, ModelConfig
from llama.model.kept import Checkpointing
from llama.model.presets import PRESETS
from llama.planning.job import Job, settings_of
from llama.settings import LoRAOptions
from llama.settings.deepspeed_json import Resolved
from tests.support.tiny_runs import deepspeed_json as settings
from tests.support.tiny_runs import resolved_json

WHOLE = bool(os.environ.get("LLAMA_TEST_WHOLE"))
"""Whether the model has all its blocks, and its rows 256 tokens. A CPU without bf16 arithmetic
takes minutes for that, and a block's memory is that of any other."""
SMOL = PRESETS["smollm2-135m"] if WHOLE else replace(PRESETS["smollm2-135m"], n_layers=4)
SHORT = 256 if WHOLE else 64
STORIES = ModelConfig(
    dim=64,
    n_layers=5,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    ffn_dim=172,
    vocab_size=512,
    max_seq_len=512,
)
"""The sizes of stories260k."""
QV = LoRAOptions(rank=8, alpha=16.0, dropout=0.05, targets=("wq", "wv"))
ALL = replace(QV, targets=LINEARS)
PACKED = (100, 30, 126)
"""Documents of one row of 256 tokens."""


@dataclass(frozen=True)
class Case:
    """One run."""

    config: ModelConfig
    precision: Literal["bf16", "fp32"]
    stage: int
    lora: LoRAOptions | None = QV
    checkpointing: Checkpointing = "none"
    rows: int = 2
    length: int = 256
    packed: bool = False
    """Each row holds the documents of `PACKED`."""
    accumulation: int = 1
    tensor_parallel: int = 1
    sequence_parallel: int = 1
    data_parallel: int = 1
    """Those that share tokens among them."""
    has_bf16: bool = True
    """Whether the CPU is taken to multiply bf16 in hardware."""
    bucket: int = 1_000_000
    base_sharers: int = 1
    base: str = "half"

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.data_parallel

    @property
    def documents(self) -> tuple[int, ...] | None:
        return PACKED * self.rows if self.packed else None

    def resolved(self) -> Resolved:
        document: dict[str, Any] = settings(self.stage, self.accumulation)
        document["train_micro_batch_size_per_gpu"] = self.rows
        zero = document["zero_optimization"]
        zero.update(reduce_bucket_size=self.bucket, allgather_bucket_size=self.bucket)
        if self.stage == 3:
            zero.update(stage3_prefetch_bucket_size=self.bucket)
            zero.update(stage3_param_persistence_threshold=1000)
            zero.update(stage3_max_live_parameters=8 * self.bucket)
            zero.update(stage3_max_reuse_distance=8 * self.bucket)
        if self.precision == "bf16":
            document["bf16"] = {"enabled": True}
        readers = self.data_parallel // self.sequence_parallel
        return resolved_json(document, readers, self.config)

    def job(self) -> Job:
        return Job(
            config=self.config,
            lora=self.lora,
            base=self.base,
            seq_len=self.length,
            documents=self.documents,
            checkpointing=self.checkpointing,
            tensor_parallel=self.tensor_parallel,
            sequence_parallel=self.sequence_parallel,
            data_parallel=self.data_parallel,
            base_sharers=self.base_sharers,
            device="cpu",
            **settings_of(self.resolved()),
        )


SHARED = Case(STORIES, "bf16", 1, ALL, sequence_parallel=2, data_parallel=2, bucket=10_000)
CASES: dict[str, Case] = {
    "smol fp32 zero0": Case(SMOL, "fp32", 0, rows=1, length=SHORT),
    "smol bf16 zero1 block": Case(SMOL, "bf16", 1, checkpointing="block", rows=1, length=SHORT),
    "smol bf16 zero2 all ffn accumulated": Case(
        SMOL, "bf16", 2, ALL, checkpointing="ffn", accumulation=2, rows=1, length=SHORT
    ),
    "smol emulated bf16 zero1 packed": Case(SMOL, "bf16", 1, packed=True, has_bf16=False, rows=1),
    "smol bf16 zero3 block": Case(SMOL, "bf16", 3, checkpointing="block", rows=1, length=SHORT),
    "stories fp32 zero0 all accumulated": Case(STORIES, "fp32", 0, ALL, accumulation=2),
    "stories bf16 zero1 packed ffn": Case(
        STORIES, "bf16", 1, checkpointing="ffn", packed=True, bucket=10_000
    ),
    "stories fp32 zero2 block": Case(
        STORIES, "fp32", 2, ALL, checkpointing="block", rows=8, bucket=10_000
    ),
    "stories fp32 zero3 two ranks": Case(
        STORIES, "fp32", 3, ALL, data_parallel=2, accumulation=2, bucket=10_000
    ),
    "smol bf16 zero3 two ranks": Case(SMOL, "bf16", 3, ALL, rows=1, data_parallel=2),
    "smol fp32 zero1 shards block": Case(
        SMOL, "fp32", 1, checkpointing="block", tensor_parallel=3, rows=1, length=SHORT
    ),
    "stories bf16 zero2 shards all": Case(
        STORIES, "bf16", 2, ALL, tensor_parallel=2, bucket=10_000
    ),
    "stories bf16 zero1 two ranks": Case(STORIES, "bf16", 1, ALL, data_parallel=2, bucket=10_000),
    "stories bf16 zero1 sharded base block": Case(
        STORIES, "bf16", 1, checkpointing="block", data_parallel=2, bucket=10_000, base_sharers=2
    ),
    "stories fp32 zero2 sharded base accumulated": Case(
        STORIES, "fp32", 2, ALL, accumulation=2, data_parallel=2, bucket=10_000, base_sharers=2
    ),
    "stories bf16 zero1 base sharded by twos": Case(
        STORIES, "bf16", 1, checkpointing="block", data_parallel=4, bucket=10_000, base_sharers=2
    ),
    "smol bf16 zero1 sharded base": Case(
        SMOL, "bf16", 1, rows=1, length=SHORT, data_parallel=2, base_sharers=2
    ),
    "stories bf16 zero1 shared tokens block": replace(SHARED, checkpointing="block", packed=True),
    "stories fp32 zero2 shared tokens": replace(
        SHARED, precision="fp32", stage=2, accumulation=2, length=301
    ),
    "stories bf16 zero1 dora block": Case(
        STORIES, "bf16", 1, replace(ALL, kind="dora"), checkpointing="block"
    ),
    "stories fp32 zero0 dora shards": Case(
        STORIES, "fp32", 0, replace(ALL, kind="dora"), tensor_parallel=2
    ),
    "stories bf16 zero1 pissa": Case(
        STORIES, "bf16", 1, replace(ALL, start="pissa_niter_1"), checkpointing="block"
    ),
    "stories fp32 zero3 pissa two ranks": Case(
        STORIES, "fp32", 3, replace(ALL, start="pissa_niter_1"), data_parallel=2, bucket=10_000
    ),
    "smol bf16 zero1 nf4 block": Case(
        SMOL, "bf16", 1, ALL, checkpointing="block", rows=1, length=SHORT, base="nf4"
    ),
    "stories fp32 zero0 nf4 shards": Case(
        STORIES, "fp32", 0, ALL, tensor_parallel=2, base="nf4", accumulation=2
    ),
    "stories bf16 zero1 fp8 block": Case(
        STORIES, "bf16", 1, ALL, checkpointing="block", base="fp8"
    ),
    "stories fp32 zero0 int8 shards": Case(STORIES, "fp32", 0, ALL, tensor_parallel=2, base="int8"),
    "stories fp32 zero0 full": Case(STORIES, "fp32", 0, None, rows=1),
    "stories bf16 zero1 full": Case(STORIES, "bf16", 1, None, rows=1, bucket=50_000),
    "smol bf16 zero2 full block": Case(
        SMOL, "bf16", 2, None, checkpointing="block", rows=1, length=SHORT
    ),
    "stories bf16 zero3 full two ranks": Case(
        STORIES, "bf16", 3, None, data_parallel=2, bucket=10_000
    ),
}
"""By name. SmolLM2's 9 heads shard over 3 ranks."""
