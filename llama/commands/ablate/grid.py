"""What is measured: every combination of what trains, precision, recomputation and accumulation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, cast

from llama.model.kept import Checkpointing
from llama.settings import AblateOptions, BenchmarkOptions

Method = Literal["lora", "full"]
Precision = Literal["float32", "bf16", "fp16"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "ffn", "block")


@dataclass(frozen=True)
class Case:
    """One combination."""

    method: Method
    precision: Precision
    checkpointing: Checkpointing
    accumulation: int
    """Micro-batches of a step."""
    rows: int
    """Of a step, however it is cut."""

    @property
    def micro_batch(self) -> int:
        return self.rows // self.accumulation

    @property
    def name(self) -> str:
        """As `lora bf16 block 8x1`: eight micro-batches of one row."""
        cut = f"{self.accumulation}x{self.micro_batch}"
        return f"{self.method} {self.precision} {self.checkpointing} {cut}"

    def but(self, **other: Any) -> Case:
        """The combination that differs in `other` alone."""
        return replace(self, **other)


def grid(options: AblateOptions) -> list[Case]:
    """Every combination, what trains least and keeps most first."""
    cuts = sorted({1, options.rows})
    return [
        Case(cast(Method, method), cast(Precision, precision), checkpointing, cut, options.rows)
        for method, precision, checkpointing, cut in product(
            options.method, options.precision, CHECKPOINTING, cuts
        )
    ]


def deepspeed_of(case: Case) -> dict[str, Any]:
    """The DeepSpeed JSON of `case`: ZeRO-1 and one rate throughout, that which `"auto"` gives to
    what trains."""
    params = {"lr": "auto", "weight_decay": 0.0, "torch_adam": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": case.micro_batch,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": 10_000_000,
            "allgather_bucket_size": 10_000_000,
        },
    }
    if case.precision != "float32":
        config[case.precision] = {"enabled": True}
    return config


def engine_options(case: Case, options: AblateOptions) -> BenchmarkOptions:
    """What the engine of `case` is built by. Operation by operation, as it is planned: what each
    technique saves is of that, and memory by part is followed from one operation to the next."""
    return BenchmarkOptions(
        model=options.model,
        seq_len=options.seq_len,
        method=case.method,
        lora=options.lora,
        checkpointing=case.checkpointing,
        compile="false",
        seed=options.seed,
    )
