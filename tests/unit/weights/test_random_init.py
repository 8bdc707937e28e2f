"""Random weights are the same whichever slice is asked for."""

import pytest
import torch

from llama.weights import random_init
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY, tied


@pytest.mark.parametrize("block_elements", [1 << 22, 640])
def test_slices_are_slices_of_the_whole(
    block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_init, "_BLOCK_ELEMENTS", block_elements)
    reader = RandomReader(TINY)
    for name in reader.names():
        whole = reader.read(name)
        for dim in range(whole.dim()):
            for start, length in ((0, 16), (16, 16), (7, 23)):
                part = reader.read(name, dim, start, length)
                assert torch.equal(part, whole.narrow(dim, start, length)), (name, dim, start)


def test_a_row_slice_draws_only_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_init, "_BLOCK_ELEMENTS", 640)
    reader = RandomReader(TINY)
    drawn: list[int] = []
    draw = RandomReader._draw
    monkeypatch.setattr(RandomReader, "_draw", lambda *args: drawn.append(args[2]) or draw(*args))
    reader.read("output.weight", 0, 48, 48)  # rows of 64: ten to a block
    assert drawn == [4, 5, 6, 7, 8, 9]


def test_distribution_and_names() -> None:
    reader = RandomReader(TINY)
    matrix = reader.read("tok_embeddings.weight")
    # By chance 6,144 numbers give it to 0.9%.
    assert float(matrix.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(reader.read("norm.weight"), torch.ones(TINY.dim))
    assert not torch.equal(matrix, reader.read("output.weight"))
    assert "output.weight" not in RandomReader(tied(TINY)).names()


def test_seed_decides() -> None:
    name = "layers.0.attention.wq.weight"
    first, again, other = RandomReader(TINY), RandomReader(TINY), RandomReader(TINY, seed=1)
    assert torch.equal(first.read(name), again.read(name))
    assert not torch.equal(first.read(name), other.read(name))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
