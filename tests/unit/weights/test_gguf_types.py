"""Every type of GGUF's: what `gguf` dequantises is read as it does, by slices too; no other is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llama.weights.gguf import GGUFReader
from llama.weights.names import from_gguf
from tests.support.model_files import TINY, interleave, random_state, write_gguf
from tests.unit.weights.refusing import problems

CONFIG = replace(TINY, dim=256, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=256)
"""Its rows are whole blocks of every type: the largest have 256 numbers."""
ROWS, COLUMNS = ((0, 16), (5, 70), (95, 1)), ((0, 256), (64, 64), (5, 20), (100, 150), (255, 1))
"""Where slices begin, and how long they are: whole heads and blocks, and parts of them."""


def can_dequantise(kind: GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


READ = [kind.name for kind in GGMLQuantizationType if can_dequantise(kind)]
REFUSED = [kind.name for kind in GGMLQuantizationType if not can_dequantise(kind)]


def random_blocks(array: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a matrix of that shape: any at all, but for blocks that are not numbers, which
    are those with a scale that is none."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(array.shape[0])
    rows, blocks = array.shape[0], array.shape[1] // block
    data = random.integers(0, 256, (rows * blocks, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        while kind.name in READ:
            bad = ~np.isfinite(gguf.dequantize(data, kind)).all(axis=1)
            if not bad.any():
                break
            data[bad] = random.integers(0, 256, (bad.sum(), block_bytes), dtype=np.uint8)
    return data.reshape(rows, blocks * block_bytes)


def expected(path: Path) -> dict[str, torch.Tensor]:
    """Every weight as `gguf` reads and dequantises it, its rotary rows in halves."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        native = from_gguf(tensor.name)
        assert native is not None
        whole = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if ".wq." in native or ".wk." in native:
            place = interleave(torch.arange(len(whole)), CONFIG.head_dim)
            whole = whole[place.argsort()]
        found[native] = whole
    return found


def test_both_sorts_are_there() -> None:
    """Those of old files, of small ones, and those that only this or that processor has."""
    assert {"F32", "Q4_0", "Q4_K", "Q6_K", "IQ2_XXS", "IQ4_XS", "TQ1_0", "MXFP4"} <= set(READ)
    assert {"Q8_1", "Q8_K", "I32"} <= set(REFUSED)


@pytest.mark.parametrize("kind", READ)
def test_it_is_read_as_gguf_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, CONFIG, random_state(CONFIG), kind, random_blocks)
    reader, weights = GGUFReader(path), expected(path)
    assert reader.names() == set(weights) == set(random_state(CONFIG))
    for name, whole in weights.items():
        assert torch.equal(reader.read(name), whole) and whole.isfinite().all(), name
        for dim, slices in enumerate((ROWS, COLUMNS)[: whole.dim()]):
            for start, length in slices:
                part = reader.read(name, dim, start, length)
                assert torch.equal(part, whole.narrow(dim, start, length)), (name, dim, start)


@pytest.mark.parametrize("kind", REFUSED)
def test_another_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, CONFIG, random_state(CONFIG), kind, random_blocks)
    found = problems(path)
    line = f"wrong type: token_embd.weight is {kind}, expected floating point"
    assert any(line in problem for problem in found), found
