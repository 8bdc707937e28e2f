"""What a benchmark tells: speed and arithmetic from the steps it timed, hardware and versions."""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama.engine import Step
from llama.fused.keeping import operations_again
from llama.kernels.products import cpu_has_bf16
from llama.metrics.speed import step_flops
from llama.model.config import ModelConfig
from llama.model.kept import Kept
from llama.train.record import environment

FORMULA = (
    "4N operations per token, 6N where each weight has a gradient; 2N more with block "
    "recomputation (2F with ffn: F the feed-forward's weights; with auto what was computed again); "
    "N = weights of the linear layers + output matrix, the latter on supervised tokens"
)
_GIB = 2**30


def speed(steps: Sequence[Step], seconds: Sequence[float]) -> dict[str, Any]:
    """Tokens per second over all ranks, step by step and as a whole; there is no padding."""
    tokens = [step.tokens for step in steps]
    return {
        "tokens_per_second": spread([n / s for n, s in zip(tokens, seconds, strict=True)]),
        "seconds_per_step": spread(seconds),
        "tokens": sum(tokens),
        "supervised_tokens": sum(step.supervised for step in steps),
        "seconds": sum(seconds),
    }


def arithmetic(
    config: ModelConfig,
    checkpointing: str,
    steps: Sequence[Step],
    seconds: Sequence[float],
    matrix_rate: float | None,
    kept: Sequence[Kept] = (),
    weight_gradients: bool = False,
) -> dict[str, Any]:
    """Achieved TFLOP/s over all ranks by `FORMULA` (`kept`: what auto chose; `weight_gradients`:
    whether the model's own weights have any), medians over the
    steps; and their shares of `matrix_rate`, the FLOP/s that the devices reach together in a plain
    product, where known."""
    needed, done = [], []
    for step, taken in zip(steps, seconds, strict=True):
        operations = step_flops(config, step.tokens, step.supervised, weight_gradients)
        ffn = 3 * config.n_layers * config.ffn_dim * config.dim
        again = {
            "none": 0.0,
            "ffn": 2.0 * ffn * step.tokens,
            "block": operations / (3 if weight_gradients else 2),
        }
        again["host"] = again["block"]
        again["auto"] = operations_again(config, kept) * step.tokens
        needed.append(operations / taken / 1e12)
        done.append((operations + again[checkpointing]) / taken / 1e12)
    rate = matrix_rate and matrix_rate / 1e12
    useful, all_done = statistics.median(needed), statistics.median(done)
    return {
        "tflops": useful,
        "tflops_with_recomputation": all_done,
        "matrix_tflops": rate,
        "matrix_share": rate and useful / rate,
        "matrix_share_with_recomputation": rate and all_done / rate,
        "formula": FORMULA,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine(device: torch.device) -> dict[str, Any]:
    """The command, hardware and versions."""
    if device.type == "cuda":
        held = torch.cuda.get_device_properties(device).total_memory
        own = {"cuda": torch.version.cuda, "device_memory_bytes": held}
    else:
        own = {"cpu_has_bf16": cpu_has_bf16(), "cpu_threads": torch.get_num_threads()}
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    return {"command": command, **environment(device), "cpu": _cpu_name(), **own}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(document: dict[str, Any]) -> str:
    """The result for a reader."""
    d = document
    rows = [
        ("model", f"{d['model']}, {d['precision']}, checkpointing {d['checkpointing']}"),
        ("step", f"{d['accumulation']} x {d['micro_batch']} rows of {d['seq_len']} tokens"),
        ("data", d["data"] or "random tokens"),
        ("tokens/s", _shown(d["tokens_per_second"], ",.1f")),
        ("seconds/step", _shown(d["seconds_per_step"], ".4f")),
        ("peak memory", f"{d['peak_memory_bytes'] / _GIB:.2f} GiB"),
        ("TFLOP/s", f"{d['tflops']:.3f}, with recomputation {d['tflops_with_recomputation']:.3f}"),
    ]
    if "reserved_memory_bytes" in d:
        rows.append(("reserved", f"{d['reserved_memory_bytes'] / _GIB:.2f} GiB"))
    if rate := d["matrix_tflops"]:
        share, again = d["matrix_share"], d["matrix_share_with_recomputation"]
        rows.append(("bf16 matrices", f"{rate:.1f} TFLOP/s: {share:.1%}, {again:.1%}"))
    packages = d["packages"]
    rows += [
        ("device", f"{d['device']}, {d['cpu']}, {d['host_cores']} cores"),
        ("versions", f"torch {packages['torch']}, deepspeed {packages['deepspeed']}"),
        ("command", d["command"]),
    ]
    if not d.get("cpu_has_bf16", True):
        rows.append(("note", "no bf16 in this CPU: bf16 products are taken in float32"))
    return "\n".join(f"{name:14} {value}" for name, value in rows)


def _shown(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}} - {values['max']:{form}})"
