"""Bytes that leave each host in an optimizer step, counted by the kernel on the interfaces.

Two runs that differ in their number of steps alone are counted whole, and their difference divided
by that of the steps: what starting and ending cost falls out; what each step costs stays, headers
and acknowledgements included. `python -m tests.multinode.wire`, as root, prints the table that
docs/scaling.md holds.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.multinode.hosts import Hosts, two_hosts
from tests.multinode.runs import train_on_both
from tests.tiny_runs import CONFIG, deepspeed_json, succeeded, write_json, write_model, write_rows

STEPS = (3, 23)
"""Of the shorter run and of the longer; the first of them make the optimizer's states."""
MODEL = replace(CONFIG, dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=512)
RANK, TARGETS = 64, ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
ADAPTER = MODEL.lora_parameter_count(RANK, TARGETS)
"""Parameters: enough that they, and not headers, are what crosses."""
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Case:
    """Data-parallel over the two hosts."""

    stage: int
    precision: str
    accumulation: int = 1

    @property
    def least(self) -> int:
        """Bytes that must leave each of n ranks that start with different gradients of the adapter
        and end with equal ones, or with parameters made of them: 2(n-1)/n of the adapter's, by
        an all-reduce round a ring (Patarasuk and Yuan, 2009), or a reduce-scatter and an
        all-gather. Here n is 2."""
        return ADAPTER * BYTES[self.precision]


CASES = (
    Case(0, "fp32"),
    Case(1, "fp32"),
    Case(1, "bf16"),
    Case(1, "bf16", accumulation=4),
    Case(2, "bf16"),
    Case(2, "bf16", accumulation=4),
    Case(3, "bf16"),
    Case(3, "bf16", accumulation=4),
)


class Wire:
    """Measures on two hosts; the model and the rows are made once."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.model = write_model(folder / "model", MODEL)
        self.rows = write_rows(folder / "rows.json", len(hosts.hosts) * STEPS[1] * 4)

    def per_step(self, case: Case) -> tuple[int, int]:
        """Bytes a step that leave the first host, and the second."""
        few, many = (self._sent(case, steps) for steps in STEPS)
        apart = STEPS[1] - STEPS[0]
        first, second = (round((b - a) / apart) for a, b in zip(few, many, strict=True))
        return first, second

    def _sent(self, case: Case, steps: int) -> list[int]:
        settings: dict[str, Any] = deepspeed_json(case.stage, case.accumulation)
        if case.precision != "fp32":
            settings[case.precision] = {"enabled": True}
        name = f"zero{case.stage}-{case.precision}-{case.accumulation}-{steps}"
        before = [host.sent() for host in self.hosts.hosts]
        done = train_on_both(
            self.hosts,
            "torchrun",
            *("--deepspeed", write_json(self.folder / f"{name}.json", settings)),
            *("--model", self.model, "--data", self.rows, "--template", "chatml"),
            *("--seq_len", "64", "--pack", "false", "--epochs", "1", "--max_steps", str(steps)),
            *("--lora.rank", str(RANK), "--lora.targets", ",".join(TARGETS), "--json"),
            *("--output_dir", self.folder / name),
        )
        assert succeeded(done)["steps"] == steps
        return [host.sent() - was for host, was in zip(self.hosts.hosts, before, strict=True)]


def main() -> None:
    print(f"adapter of {ADAPTER:,} parameters\n")
    print("| ZeRO | precision | accumulation | least | first host sends | second | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as settings, tempfile.TemporaryDirectory() as runs:
        with two_hosts(Path(settings)) as hosts:
            wire = Wire(hosts, Path(runs))
            for case in CASES:
                first, second = wire.per_step(case)
                ratio = max(first, second) / case.least
                print(
                    f"| {case.stage} | {case.precision} | {case.accumulation} | {case.least:,} "
                    f"| {first:,} | {second:,} | {ratio:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
