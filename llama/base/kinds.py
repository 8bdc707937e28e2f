"""The ways to hold a frozen weight, by name."""

from __future__ import annotations

from llama.base.dense import Dense
from llama.base.frozen import FrozenWeight
from llama.base.nf4 import NF4

KINDS: dict[str, type[FrozenWeight]] = {"half": Dense, "nf4": NF4}
"""`half` is the run's own precision: fp16, bf16 or, where the JSON asks for neither, float32."""
