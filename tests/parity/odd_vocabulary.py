"""Vocabularies that the ranks do not divide, on all ranks against one of them alone.

torchrun --nproc_per_node 4 -m tests.parity.odd_vocabulary --out FILE
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from llama.adapters.attach import adapters, attach, initialise
from llama.assembly.model import build_model
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.config import ModelConfig
from llama.model.decoding import Sampling, decode
from llama.model.documents import Documents
from llama.model.transformer import Supervision, Transformer
from llama.parallel.mesh import SINGLE, TensorParallel, create_mesh
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY

VOCABULARIES = (97, 9, 96)
"""One more than the ranks divide; one that leaves the last of four ranks no token; one they do."""
LENGTH, NEW = 24, 12


class Uneven(RandomReader):
    """Weights large enough that the logits differ: of even ones a row too many would hide."""

    def read(self, name: str, *where: Any) -> torch.Tensor:
        return super().read(name, *where) * (1.0 if "norm" in name else 5.0)


@dataclass(frozen=True)
class Row:
    """How far the ranks together are from one alone, and what they do not leave out."""

    vocab_size: int
    tied: bool
    logits: float
    loss: float
    gradient: float
    same_text: bool
    real_rows: int
    """Rows of the embedding over all ranks that hold something."""
    logits_width: int


def outcome(config: ModelConfig, tp: TensorParallel, device: torch.device) -> dict[str, Any]:
    source = ModelSource("tiny", Uneven(config), None)
    model = build_model(source, torch.float32, device, tp)
    attach(model, LoRAOptions(4, 8.0, 0.0, ("wq", "wo")))
    initialise(model, 0, device)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (LENGTH,), generator=generator)
    tokens[0], tokens[1] = 0, config.vocab_size - 1
    positions, documents = torch.arange(LENGTH), Documents((0, LENGTH))
    labels = Supervision(positions[:-1], tokens[1:])
    with torch.no_grad():
        logits = model(tokens, positions, documents)
    loss = model(tokens, positions, documents, labels)
    loss.backward()
    return {
        "logits": logits,
        "loss": loss.item(),
        "gradient": gradient(model),
        "text": list(decode(model, tokens.tolist(), NEW, frozenset(), Sampling())),
        "filled": int(model.tok_embeddings.weight.any(dim=1).sum()),
    }


def gradient(model: Transformer) -> torch.Tensor:
    """Of a factor that every rank holds whole: the first layer's B of wo, far from the loss."""
    adapter = next(
        adapter for name, adapter in adapters(model) if name.endswith("layers.0.attention.wo")
    )
    return adapter.b.grad


def row(config: ModelConfig, tp: TensorParallel, device: torch.device) -> Row:
    found, alone = outcome(config, tp, device), outcome(config, SINGLE, device)
    filled = torch.tensor([found["filled"]])
    tp.all_reduce_(filled)

    def apart(key: str) -> float:
        ours, theirs = torch.as_tensor(found[key]), torch.as_tensor(alone[key])
        return float((ours - theirs).abs().max() / theirs.abs().max())

    return Row(
        config.vocab_size,
        config.tied_embedding,
        *(apart(key) for key in ("logits", "loss", "gradient")),
        same_text=found["text"] == alone["text"],
        real_rows=int(filled),
        logits_width=found["logits"].shape[-1],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(torch.distributed.get_world_size())
    rows = [
        row(replace(TINY, vocab_size=size, tied_embedding=tied), mesh.tensor_parallel, device)
        for size, tied in product(VOCABULARIES, (False, True))
    ]
    if mesh.is_main:
        given.out.write_text(json.dumps([asdict(r) for r in rows]))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
