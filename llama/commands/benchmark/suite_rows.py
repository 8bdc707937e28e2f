"""What `--suite` times: one table of work, each for us and for the peers that are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALL = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
QV = ("wq", "wv")
SEVEN, EIGHT, ONE, SMALL = "llama-7b", "llama-3-8b", "llama-3.2-1b", "smollm2-135m"
BEST = ("liger", "unsloth")


@dataclass(frozen=True)
class Work:
    """One line of the table: a step of a model of random weights, unless said otherwise."""

    row: int
    """Lines of one row show one thing."""
    model: str
    batch: int = 1
    length: int = 1024
    checkpointing: Literal["none", "block", "host"] = "none"
    targets: tuple[str, ...] = ALL
    base: str = "half"
    """How we hold the frozen weights."""
    four_bits: bool = False
    """Whether the peers hold theirs in four bits; else in bf16."""
    what: Literal["step", "rows", "run"] = "step"
    """A step on random tokens; steps on instruction rows, packed; or a whole run of `train` on the
    bundled model and rows."""
    peers: tuple[str, ...] = BEST
    """Kinds of `peer.py`; `unsloth+packing` trains on the rows as packed."""
    graphs: bool = False
    """Whether Unsloth's CUDA graphs are switched on, which it advises for small steps."""

    @property
    def name(self) -> str:
        if self.what == "run":
            return f"train, {self.model}, bundled rows, {self.checkpointing}"
        held = {"half": "bf16"}.get(self.base, self.base)
        rows = f"{self.batch} x {self.length}{', rows packed' * (self.what == 'rows')}"
        targets = "seven targets" if self.targets == ALL else "q,v"
        return f"{self.model}, {held}, {rows}, {self.checkpointing}, {targets}"


PACKING = ("liger", "unsloth", "unsloth+packing")
LARGE = (
    Work(5, EIGHT, 2, 4096),
    Work(5, EIGHT, 2, 4096, "block"),
    Work(5, SEVEN, 4, 1024),
)
ONE_GPU = (
    Work(1, SMALL, 1, 1024, targets=QV, what="run", peers=()),
    Work(2, SEVEN, graphs=True),
    Work(2, SEVEN, targets=QV, graphs=True),
    Work(3, ONE, graphs=True),
    Work(3, ONE, 4, graphs=True),
    Work(4, SMALL, 8, targets=QV, peers=("liger",)),
    Work(4, SMALL, 8, peers=("liger",)),
    *LARGE,
    Work(5, EIGHT, 2, 4096, "host"),
    *(Work(6, of.model, of.batch, of.length, of.checkpointing, base="fp8") for of in LARGE),
    Work(7, EIGHT, 2, 4096, what="rows", peers=PACKING),
    Work(7, EIGHT, 2, 4096, base="fp8", what="rows", peers=PACKING),
    Work(8, SEVEN, 1, 2048, "host", base="nf4", four_bits=True, peers=("unsloth",)),
    Work(8, EIGHT, 2, 4096, base="nf4", four_bits=True, peers=("unsloth",)),
    Work(9, "llama-3-70b", checkpointing="block", base="fp8", peers=()),
)
TINY = (
    Work(1, SMALL, 2, 16, targets=QV, peers=("peft",)),
    Work(2, SMALL, 1, 256, what="rows", targets=QV, peers=("peft", "unsloth")),
)
"""Small enough for a CPU, to show that all of it works."""
SUITES = {"one-gpu": ONE_GPU, "tiny": TINY}
