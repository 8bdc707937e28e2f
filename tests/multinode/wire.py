"""Bytes that leave each host in an optimizer step, counted by the kernel on the interfaces.

`make wire` prints the table of docs/scaling.md. Two runs that differ in their number of steps alone
are counted whole, and their difference divided by that of the steps: what starting and ending
cost falls out, what every step costs stays, headers and acknowledgements included.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.multinode.hosts import Hosts, missing, two_hosts
from tests.multinode.runs import train_on_both
from tests.tiny_runs import CONFIG, deepspeed_json, succeeded, write_json, write_model, write_rows

STEPS = (3, 23)
"""Of the shorter run and of the longer: the first steps make the optimizer's states."""
MODEL = replace(CONFIG, dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=512)
RANK, TARGETS = 64, ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
ADAPTER = MODEL.lora_parameter_count(RANK, TARGETS)
"""Parameters: enough that they, and not the headers, are what crosses."""

@dataclass(frozen=True)
class Case:
    """What a run is asked for."""

    stage: int
    precision: str = "fp32"
    accumulation: int = 1
    tensor_parallel: int = 1


class Wire:
    """Measures on two hosts."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.model = write_model(folder / "model", MODEL)
        rows = 2 * STEPS[1] * 3
        self.rows = write_rows(folder / "rows.json", rows)

    def per_step(self, case: Case) -> tuple[float, float]:
        """Bytes a step that leave the first host, and the second."""
        few, many = (self._sent(case, steps) for steps in STEPS)
        difference = STEPS[1] - STEPS[0]
        first, second = ((b - a) / difference for a, b in zip(few, many, strict=True))
        return first, second

    def _sent(self, case: Case, steps: int) -> list[int]:
        settings: dict[str, Any] = deepspeed_json(case.stage, case.accumulation)
        if case.precision != "fp32":
            settings[case.precision] = {"enabled": True}
        name = f"{case.stage}-{case.precision}-{case.accumulation}-{case.tensor_parallel}-{steps}"
        before = [host.sent() for host in self.hosts.hosts]
        done = train_on_both(
            self.hosts,
            "torchrun",
            *("--deepspeed", write_json(self.folder / f"{name}.json", settings)),
            *("--model", self.model, "--data", self.rows, "--template", "chatml"),
            *("--seq_len", "64", "--pack", "false", "--epochs", "1", "--max_steps", str(steps)),
            *("--lora.rank", str(RANK), "--lora.targets", ",".join(TARGETS)),
            *("--tensor_parallel", str(case.tensor_parallel), "--json"),
            *("--output_dir", self.folder / name),
        )
        assert succeeded(done)["steps"] == steps
        return [host.sent() - was for host, was in zip(self.hosts.hosts, before, strict=True)]
