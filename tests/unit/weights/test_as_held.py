"""Weights as they are held, read again: what a shard's model computes with, joined."""

from __future__ import annotations

import pytest
import torch

from llama.assembly.model import build_model
from llama.base.dense import Dense
from llama.base.nf4 import NF4
from llama.parallel.mesh import TensorParallel
from llama.weights.as_held import AsHeld
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY

CPU = torch.device("cpu")
READER = RandomReader(TINY)


class Shard(TensorParallel):
    """One of several ranks, the others not being there."""

    def _exchanges(self) -> bool:
        return False


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_it_is_what_the_shards_of_a_model_hold(shards: int) -> None:
    reader = AsHeld(READER, NF4, shards, CPU)
    models = [
        build_model(
            ModelSource("tiny", READER, None), torch.float32, CPU, Shard(rank, shards), base="nf4"
        )
        for rank in range(shards)
    ]
    for part, name, cut in (
        ("attention", "wk", 0),
        ("attention", "wo", 1),
        ("feed_forward", "w2", 1),
    ):
        layers = [model.layers[1].get_submodule(f"{part}.{name}") for model in models]
        held = [NF4(layer.get_parameter("weight")).dense() for layer in layers]
        full = f"layers.1.{part}.{name}.weight"
        assert torch.equal(reader.read(full), torch.cat(held, dim=cut))
        assert torch.equal(reader.read(full, 1, 8, 24), reader.read(full)[:, 8:32])
        assert not torch.equal(reader.read(full), READER.read(full))


def test_all_else_is_as_it_was() -> None:
    narrow, dense = AsHeld(READER, NF4, 2, CPU), AsHeld(READER, Dense, 2, CPU)
    for name in READER.names():
        assert torch.equal(dense.read(name), READER.read(name))
        if "attention.w" not in name and "feed_forward" not in name:
            assert torch.equal(narrow.read(name, 0, 3, 5), READER.read(name, 0, 3, 5))
    assert narrow.fingerprint() == READER.fingerprint()
