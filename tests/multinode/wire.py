"""Bytes that leave each host in an optimizer step, counted by the kernel on the interfaces.

Two runs that differ in their number of steps alone are counted whole, and their difference divided
by that of the steps: what starting and ending cost falls out; what each step costs stays, headers
and acknowledgements included. `python -m tests.multinode.wire`, as root, prints the table that
docs/scaling.md holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
DEPTHS = (2, MODEL.n_layers)
TOKENS, LAYER_RANK = 192, 16
"""Of a row, and of the adapters on wq and wv, where it is layers that are measured."""
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

    @property
    def expected(self) -> int:
        """Bytes of this stage's own scheme: ZeRO 2 sends gradients after each micro-batch; ZeRO 3
        gathers all weights for each forward and each backward too, and nothing after the step."""
        gradients = 1 if self.stage < 2 else self.accumulation
        elements = (gradients + 1) * ADAPTER
        if self.stage == 3:
            elements = gradients * (3 * ADAPTER + 2 * MODEL.parameter_count())
        return elements * BYTES[self.precision] // 2


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


@dataclass(frozen=True)
class Layer:
    """One block of the model, tensor-parallel over the two hosts, in float32."""

    checkpointing: str

    @property
    def expected(self) -> int:
        """Bytes of a step that leave each of two ranks: sums of `[T, D]` after each half of the
        block, in the forward and for the gradient of its input in the backward (Shoeybi et al.,
        "Megatron-LM", 2019, section 3), each as many bytes as it has. What is recomputed stops
        short of the second. Adapters on wq and wv sum the gradient of `[T, R]`."""
        sums = 5 if self.checkpointing == "block" else 4
        return 4 * TOKENS * (sums * MODEL.dim + 2 * LAYER_RANK)


LAYERS = (Layer("none"), Layer("block"))


class Wire:
    """Measures on two hosts; models and rows are made once."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.models = {
            depth: write_model(folder / f"model-{depth}", MODEL.with_layers(depth))
            for depth in DEPTHS
        }
        self.rows = write_rows(folder / "rows.json", len(hosts.hosts) * STEPS[1] * 4)
        self.equal_rows = write_json(
            folder / "equal.json", [{"text": "x" * (TOKENS - 1)}] * (STEPS[1] + 1)
        )

    def per_step(self, case: Case) -> tuple[int, ...]:
        """Bytes a step that leave the first host, and the second."""
        settings = deepspeed_json(case.stage, case.accumulation)
        if case.stage == 3:  # all is cut up, however small
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if case.precision != "fp32":
            settings[case.precision] = {"enabled": True}
        lora = ("--lora.rank", str(RANK), "--lora.targets", ",".join(TARGETS))
        return self._per_step(settings, DEPTHS[1], "--data", self.rows, *lora)

    def per_layer(self, layer: Layer) -> tuple[int, ...]:
        """The same of one block, by the difference between two depths."""
        shallow, deep = (
            self._per_step(
                deepspeed_json(1, 1),
                depth,
                *("--data", self.equal_rows, "--lora.rank", str(LAYER_RANK)),
                *("--tensor_parallel", "2", "--checkpointing", layer.checkpointing),
            )
            for depth in DEPTHS
        )
        return tuple(
            round((b - a) / (DEPTHS[1] - DEPTHS[0])) for a, b in zip(shallow, deep, strict=True)
        )

    def _per_step(self, settings: dict[str, Any], depth: int, *argv: str | Path) -> tuple[int, ...]:
        few, many = (self._sent(settings, depth, steps, *argv) for steps in STEPS)
        apart = STEPS[1] - STEPS[0]
        return tuple(round((b - a) / apart) for a, b in zip(few, many, strict=True))

    def _sent(
        self, settings: dict[str, Any], depth: int, steps: int, *argv: str | Path
    ) -> list[int]:
        out = Path(tempfile.mkdtemp(dir=self.folder))
        before = [host.sent() for host in self.hosts.hosts]
        done = train_on_both(
            self.hosts,
            "torchrun",
            *("--deepspeed", write_json(out / "deepspeed.json", settings)),
            *("--model", self.models[depth], "--template", "chatml", "--seq_len", str(TOKENS)),
            *("--pack", "false", "--epochs", "1", "--max_steps", str(steps), "--json"),
            *("--output_dir", out / "run", *argv),
        )
        assert succeeded(done)["steps"] == steps
        return [host.sent() - was for host, was in zip(self.hosts.hosts, before, strict=True)]


def measure(wire: Wire) -> Iterator[str]:
    """The lines of the tables, each as soon as it is known."""
    yield f"An adapter of {ADAPTER:,} parameters, data-parallel, and the least for its exchange:\n"
    yield "| ZeRO | precision | accumulation | least | expected | sent, first | second | over |"
    yield "|---|---|---|---|---|---|---|---|"
    for case in CASES:
        what = f"{case.stage} | {case.precision} | {case.accumulation} | {case.least:,}"
        yield _row(what, case.expected, wire.per_step(case))
    yield f"\nOne block, tensor-parallel, {TOKENS} tokens {MODEL.dim} wide:\n"
    yield "| checkpointing | expected | sent, first | second | over |"
    yield "|---|---|---|---|---|"
    for layer in LAYERS:
        yield _row(layer.checkpointing, layer.expected, wire.per_layer(layer))


def _row(what: str, expected: int, sent: tuple[int, ...]) -> str:
    counts = " | ".join(f"{count:,}" for count in (expected, *sent))
    return f"| {what} | {counts} | {max(sent) / expected:.3f} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as settings, tempfile.TemporaryDirectory() as runs:
        with two_hosts(Path(settings)) as hosts:
            for line in measure(Wire(hosts, Path(runs))):
                print(line, flush=True)


if __name__ == "__main__":
    main()
