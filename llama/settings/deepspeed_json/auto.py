"""What `"auto"` stands for: one table, for the keys where it is understood. It is the word with
which transformers' recipes leave a key to the trainer. What it became is printed and kept in
run.json; the value of a key that follows from nothing is that of ds_configs/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
MICRO_BATCH, ACCUMULATION, ZERO_STAGE = 1, 2, 1
WARMUP_SHARE = 0.03
FIRST_HALF_SHARE = 0.3


@dataclass(frozen=True)
class RateRule:
    """`times` / the width of the model, at most `largest`: rates fall with the width, as practice
    and width-scaling arguments agree (Yang et al., "Tensor Programs V", 2022)."""

    times: float
    largest: float

    def of(self, width: int) -> float:
        return float(f"{min(self.times / width, self.largest):.3g}")


RATES = {"lora": RateRule(1.7, 5e-3), "full": RateRule(0.08, 1e-3)}
"""By what trains. 7B gets 4.2e-4 for adapters; for all its parameters 2e-5, as Taori et al.,
"Stanford Alpaca", 2023, trained it."""


@dataclass(frozen=True)
class Facts:
    """What a value may follow from."""

    batch: tuple[int, int, int]
    """Rows of a step, of a micro-batch, and micro-batches of a step on one rank."""
    precision: str
    """`fp16`, `bf16` or `fp32`."""
    width: int
    """Of the model."""
    total_steps: int
    method: str
    """What trains, a key of `RATES`."""
    engine: dict[str, Any]
    """The settings, in which what stands earlier in the table is filled in."""

    @property
    def rate(self) -> float:
        return self.engine["optimizer"]["params"]["lr"]

    def of_schedule(self, name: str) -> Any:
        return self.engine["scheduler"]["params"][name]


VALUES: dict[str, Callable[[Facts], Any]] = {
    "train_batch_size": lambda f: f.batch[0],
    "train_micro_batch_size_per_gpu": lambda f: f.batch[1],
    "gradient_accumulation_steps": lambda f: f.batch[2],
    "fp16.enabled": lambda f: f.precision == "fp16",
    "bf16.enabled": lambda f: f.precision == "bf16",
    "gradient_clipping": lambda f: 1.0,
    "optimizer.params.lr": lambda f: RATES[f.method].of(f.width),
    "optimizer.params.betas": lambda f: [0.9, 0.999],
    "optimizer.params.eps": lambda f: 1e-8,
    "optimizer.params.weight_decay": lambda f: 0.0,
    "scheduler.params.total_num_steps": lambda f: f.total_steps,
    "scheduler.params.warmup_num_steps": lambda f: max(1, round(WARMUP_SHARE * f.total_steps)),
    "scheduler.params.warmup_max_lr": lambda f: f.rate,
    "scheduler.params.warmup_min_lr": lambda f: f.rate / max(2, f.of_schedule("warmup_num_steps")),
    "scheduler.params.cycle_max_lr": lambda f: f.rate,
    "scheduler.params.cycle_first_step_size": lambda f: max(
        1, round(FIRST_HALF_SHARE * f.total_steps)
    ),
    "scheduler.params.cycle_second_step_size": lambda f: max(
        0, f.total_steps - f.of_schedule("cycle_first_step_size")
    ),
    "zero_optimization.stage": lambda f: ZERO_STAGE,
    "zero_optimization.reduce_bucket_size": lambda f: 10_000_000,
    "zero_optimization.stage3_prefetch_bucket_size": lambda f: 100_000_000,
    "zero_optimization.stage3_param_persistence_threshold": lambda f: 200_000,
    "zero_optimization.offload_optimizer.device": lambda f: "none",
    "zero_optimization.offload_param.device": lambda f: "none",
}
"""Dotted key to value."""


def fill(facts: Facts) -> dict[str, Any]:
    """Put the value in the place of each "auto" of `facts.engine`; gives what was put, by key."""
    filled = {}
    for path, value in VALUES.items():
        *sections, name = path.split(".")
        node: Any = facts.engine
        for section in sections:
            node = node.get(section, {})
        if node.get(name) == AUTO:
            filled[path] = node[name] = value(facts)
    return filled
