"""The logits of many models, each spread over all ranks.

torchrun --nproc_per_node 2 -m tests.parity.logits_on_ranks --jobs FILE --out FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llama.assembly.model import ready_model
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.documents import Documents
from llama.parallel.mesh import SINGLE, TensorParallel, create_mesh
from llama.weights.open_model import open_model
from tests.support.tiny_runs import torchrun_module

LENGTH = 48
"""Tokens of the text that is read."""
Jobs = dict[str, tuple[str, str | None]]
"""By a name of their own, models as `--model` has them, and the folders of their adapters."""


def tokens(vocab_size: int) -> torch.Tensor:
    """A text whose tokens are spread over the vocabulary, from first to last."""
    return torch.linspace(0, vocab_size - 1, LENGTH).long()[torch.arange(LENGTH) * 7 % LENGTH]


@torch.no_grad()
def logits(model: str, adapter: str | None, tp: TensorParallel = SINGLE) -> torch.Tensor:
    """`[LENGTH, V]`, float32."""
    source = open_model(model)
    ready = ready_model(source, Path(adapter) if adapter else None, "float32", tp)
    positions = torch.arange(LENGTH)
    return ready(tokens(source.config.vocab_size), positions, Documents((0, LENGTH)))


def logits_of(jobs: Jobs, degree: int, folder: Path) -> dict[str, torch.Tensor]:
    """Of each job, on as many ranks. `folder` is for what passes between them and here."""
    if degree == 1:
        return {name: logits(*job) for name, job in jobs.items()}
    out, given = folder / "logits.safetensors", folder / "jobs.json"
    given.write_text(json.dumps(jobs))
    module = "tests.parity.logits_on_ranks"
    done = torchrun_module(module, "--jobs", given, "--out", out, ranks=degree, timeout=3600)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return load_file(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("jobs", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    start_processes()
    mesh = create_mesh(torch.distributed.get_world_size())
    jobs: Jobs = json.loads(given.jobs.read_text())
    found = {name: logits(*job, mesh.tensor_parallel) for name, job in jobs.items()}
    if mesh.is_main:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, given.out)
    stop_processes()


if __name__ == "__main__":
    run_program(main)
