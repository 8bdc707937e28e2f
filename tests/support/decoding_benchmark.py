"""Decoding against transformers' `generate`, in one process: the same weights, prompts and tokens.

    python -m tests.support.decoding_benchmark
    python -m tests.support.decoding_benchmark --precision bf16 --threads 2

Ours and theirs take turns (A B A B), greedily, with no end token, and each pair gives two ratios:
of seconds, and of the process's CPU seconds, on which other processes of a busy machine bear less.
Theirs is given a batch padded on the left, with its mask, as its users do. A third turn is ours
with an adapter of rank 16 on wq and wv, not merged.

This is a script beside the tests: pytest does not collect it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import torch

from llama.adapters.attach import adapters, attach, initialise
from llama.assembly.model import build_model
from llama.commands.benchmark.report import machine, spread
from llama.launch.program import run_program
from llama.model.decoding import Sampling, decode_together
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.settings.options import run_command
from llama.weights.open_model import open_model
from tests.support.model_files import transformers_model

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Settings of this script."""

    model: str = "smollm2-135m"
    """The model, as every command takes it."""
    precision: Literal["float32", "bf16"] = "float32"
    """What both compute in."""
    prompt_tokens: int = 64
    """Tokens of a prompt; of a ragged batch's longest."""
    new_tokens: int = 64
    """Tokens written after each prompt."""
    batch: int = 8
    """Prompts of the batches."""
    pairs: int = 5
    """Measurements of each side, after one that is not counted."""
    threads: int = 1
    """Threads of torch's."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    cpu: float
    texts: list[list[int]]


def measured(function: Callable[[], list[list[int]]]) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    texts = function()
    return Measured(time.perf_counter() - wall, time.process_time() - cpu, texts)


class Sides:
    """The same model three times."""

    def __init__(self, options: DecodingOptions) -> None:
        source = open_model(options.model)
        dtype = DTYPES[options.precision]
        self.new_tokens = options.new_tokens
        self.plain = build_model(source, dtype, CPU).eval()
        self.adapted = build_model(source, dtype, CPU)
        attach(self.adapted, LoRAOptions())
        initialise(self.adapted, 0, CPU)
        for _, adapter in adapters(self.adapted):
            adapter.to(dtype).requires_grad_(False)
        self.adapted.eval()
        self.transformers = transformers_model(source.config, source.reader.read).to(dtype).eval()
        self.transformers.generation_config.eos_token_id = None

    def ours(self, model: Transformer, prompts: list[list[int]]) -> list[list[int]]:
        done = decode_together(
            model, prompts, self.new_tokens, frozenset(), Sampling(), len(prompts)
        )
        return [text.tokens for text in sorted(done, key=lambda text: text.index)]

    @torch.no_grad()
    def theirs(self, prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        out = self.transformers.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=self.new_tokens,
            pad_token_id=0,
        )
        return out[:, longest:].tolist()


def cases(options: DecodingOptions, vocab_size: int) -> dict[str, list[list[int]]]:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(0)

    def prompt(length: int) -> list[int]:
        return torch.randint(vocab_size, (length,), generator=generator).tolist()

    size, most = options.batch, options.prompt_tokens
    return {
        "alone": [prompt(most)],
        f"{size}, equally long": [prompt(most) for _ in range(size)],
        f"{size}, ragged": [prompt(max(1, most * (i + 1) // size)) for i in range(size)],
    }


def compare(options: DecodingOptions) -> int:
    torch.set_num_threads(options.threads)
    sides = Sides(options)
    document: dict[str, Any] = {
        "model": options.model,
        "precision": options.precision,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "threads": options.threads,
        **machine(CPU),
        "transformers": metadata.version("transformers"),
        "cases": {},
    }
    print(
        f"{'prompts':16} {'ours tok/s':>10} {'theirs':>8}   ours / theirs (min - max), by CPU time"
    )
    for name, prompts in cases(options, sides.plain.config.vocab_size).items():
        result = measure(sides, prompts, options.pairs)
        document["cases"][name] = result
        print(line(name, result), flush=True)
    document["load"] = os.getloadavg()[1]
    print(json.dumps(document))
    return 0


def measure(sides: Sides, prompts: list[list[int]], pairs: int) -> dict[str, Any]:
    rounds = [
        (
            measured(lambda: sides.ours(sides.plain, prompts)),
            measured(lambda: sides.theirs(prompts)),
            measured(lambda: sides.ours(sides.adapted, prompts)),
        )
        for _ in range(pairs + 1)
    ][1:]
    tokens = sides.new_tokens * len(prompts)
    ours, theirs, _ = rounds[0]
    pairs_of_texts = zip(ours.texts, theirs.texts, strict=True)
    return {
        "ours": spread([tokens / ours.seconds for ours, _, _ in rounds]),
        "theirs": spread([tokens / theirs.seconds for _, theirs, _ in rounds]),
        "ratio": spread([theirs.seconds / ours.seconds for ours, theirs, _ in rounds]),
        "cpu_ratio": spread([theirs.cpu / ours.cpu for ours, theirs, _ in rounds]),
        "adapter_cpu_cost": spread([adapted.cpu / ours.cpu for ours, _, adapted in rounds]),
        "same_texts": sum(a == b for a, b in pairs_of_texts),
    }


def line(name: str, result: dict[str, Any]) -> str:
    def shown(spread: dict[str, float]) -> str:
        return f"{spread['median']:.2f} ({spread['min']:.2f} - {spread['max']:.2f})"

    rates = f"{result['ours']['median']:10.1f} {result['theirs']['median']:8.1f}"
    return (
        f"{name:16} {rates}   {shown(result['ratio'])}, {shown(result['cpu_ratio'])}; "
        f"with an adapter {shown(result['adapter_cpu_cost'])} x the CPU time; "
        f"{result['same_texts']} texts the same"
    )


if __name__ == "__main__":
    run_program(run_command, compare, DecodingOptions, "decoding_benchmark.py", __doc__ or "")
