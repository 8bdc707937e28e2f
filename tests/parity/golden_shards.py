"""A model cut into Meta shards, on this topology: writes the greedy text of each cut.

torchrun --nproc_per_node 2 -m tests.parity.golden_shards --models DIR DIR --out FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from llama.assembly.model import build_model, find_tokenizer
from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.decoding import Sampling, decode
from llama.parallel.mesh import create_mesh
from llama.weights.open_model import open_model
from tests.support.model_files import cut_meta

SHARDS = (1, 2, 4)
TOKENS = 200


def cut(model: Path, folder: Path, shards: int) -> Path:
    """The model as Meta would release it in `shards` files."""
    folder.mkdir(parents=True)
    for name in ("params.json", "tokenizer.model"):
        shutil.copy(model / name, folder / name)
    state = torch.load(model / "consolidated.00.pth", weights_only=True)
    for shard, part in enumerate(cut_meta(state, shards, embedding_dim=1)):
        torch.save(part, folder / f"consolidated.{shard:02}.pth")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = start_processes()
    mesh = create_mesh(torch.distributed.get_world_size())
    texts = {}
    for folder in given.models:
        source = open_model(str(folder))
        tokenizer = find_tokenizer(source, None)
        model = build_model(source, torch.float32, device, mesh.tensor_parallel).eval()
        assert tokenizer.bos_id is not None
        ids = decode(model, [tokenizer.bos_id], TOKENS, tokenizer.stop_ids, Sampling())
        texts[folder.name] = tokenizer.decode(list(ids))
    if mesh.is_main:
        given.out.write_text(json.dumps(texts))
    stop_processes()


if __name__ == "__main__":
    run_program(main)
