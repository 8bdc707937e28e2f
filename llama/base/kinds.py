"""The ways to hold a frozen weight, by name."""

from __future__ import annotations

from llama.base.dense import Dense
from llama.base.eight_bits import FP8, Int8
from llama.base.frozen import FrozenWeight
from llama.base.nf4 import NF4

KINDS: dict[str, type[FrozenWeight]] = {"half": Dense, "int8": Int8, "fp8": FP8, "nf4": NF4}
"""`half` is the run's own precision: fp16, bf16 or, where the JSON asks for neither, float32."""


def lacking(base: str, gpu: str, capability: tuple[int, int]) -> list[str]:
    """Whether a GPU of such a name and compute capability has the products of `base`."""
    if capability >= (needed := KINDS[base].CAPABILITY):
        return []
    others = [name for name, kind in KINDS.items() if kind.CAPABILITY <= capability]
    found, least = (".".join(map(str, version)) for version in (capability, needed))
    return [
        f"--base {base}: {gpu} has no such products: it is of compute capability {found}, and they "
        f"begin with {least}; it has those of {', '.join(others)}"
    ]
