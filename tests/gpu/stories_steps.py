"""Optimizer steps of stories260k on one device in one precision, the same work on all of them;
losses, skips and scales come out as one JSON object:
`python -m tests.gpu.stories_steps --model DIR --rows FILE --device cuda --precision bf16`.

A process group lives as long as its process, so each case is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from llama.adapters.attach import attach, initialise
from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import DTYPES
from llama.assembly.model import build_model, find_tokenizer
from llama.data.batches import make_batch
from llama.data.types import IGNORE, Batch, Example
from llama.engine import Engine, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.config import LINEARS
from llama.parallel.mesh import create_mesh
from llama.settings import LoRAOptions, deepspeed_json
from llama.tokenizer.base import Tokenizer
from llama.weights.open_model import ModelSource, open_model
from tests.support.tiny_runs import deepspeed_json as settings

LORA = LoRAOptions(dropout=0.0, targets=LINEARS)
LEARNING_RATE = 1e-3
ACCUMULATION = 2
DOCUMENTS = 3
"""Of a micro-batch, all of different lengths."""


def windows(tokenizer: Tokenizer, rows: Path, count: int) -> list[list[Batch]]:
    """`count` windows of two micro-batches of three documents, the first third of each not
    supervised."""
    texts = (row["output"] for row in json.loads(rows.read_text()))
    found: dict[int, Example] = {}
    micro_batches = []
    for number, text in enumerate(texts, start=1):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)][:192]
        if len(ids) < 12 or len(ids) in found:
            continue
        prompt = len(ids) // 3
        found[len(ids)] = Example(ids, [IGNORE] * prompt + ids[prompt:], number)
        if len(found) == DOCUMENTS:
            stream = len(micro_batches) % ACCUMULATION
            micro_batches.append(make_batch([list(found.values())], stream))
            found = {}
        if len(micro_batches) == count * ACCUMULATION:
            break
    starts = range(0, count * ACCUMULATION, ACCUMULATION)
    return [micro_batches[i : i + ACCUMULATION] for i in starts]


def document(precision: str, initial_scale_power: int) -> dict[str, Any]:
    """The DeepSpeed JSON: ZeRO-1 and AdamW."""
    result = settings(1, ACCUMULATION, lr=LEARNING_RATE, weight_decay=0.0)
    if precision == "bf16":
        result["bf16"] = {"enabled": True}
    if precision == "fp16":
        result["fp16"] = {
            "enabled": True,
            "initial_scale_power": initial_scale_power,
            "loss_scale_window": 1000,
            "hysteresis": 2,
        }
    assert not deepspeed_json.check(result, "settings", data_parallel=1)
    return result


def build(
    source: ModelSource, precision: str, power: int, steps: int, device: torch.device
) -> Engine:
    mesh = create_mesh(1)
    model = build_model(source, DTYPES[precision], device, checkpointing="block")
    attach(model, LORA)
    initialise(model, 0, device)
    resolved = resolve_here(document(precision, power), mesh, steps, source.config)
    assert resolved.precision == precision
    return Engine(model, resolved, mesh, device, seed=0)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--precision", choices=tuple(DTYPES), required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--windows", type=int, default=4, help="that come round again")
    parser.add_argument("--initial_scale_power", type=int, default=10)
    given = parser.parse_args(argv)
    source = open_model(given.model)
    work = windows(find_tokenizer(source, None), given.rows, given.windows)
    device = start_processes()
    assert device.type == given.device, device
    engine = build(source, given.precision, given.initial_scale_power, given.steps, device)
    steps = [engine.step(window) for window in islice(cycle(work), given.steps)]
    values = [*engine.whole_adapter().values(), *engine.model.parameters()]
    result = {
        "losses": [step.loss for step in steps],
        "grad_norms": [step.grad_norm for step in steps],
        "skipped": [not step.applied for step in steps],
        "loss_scales": [step.loss_scale for step in steps],
        "finite": all(bool(value.isfinite().all()) for value in values),
    }
    stop_processes()
    print(json.dumps(result))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
