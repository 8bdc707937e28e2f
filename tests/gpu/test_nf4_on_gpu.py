"""Weights in four bits on a CUDA device, made dense by our kernel, against bitsandbytes' own."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from llama.base.nf4 import NF4, _by_bitsandbytes
from llama.kernels import compiled
from tests.gpu.test_kernels_on_gpu import CUDA
from tests.support.skips import GPU, needs_gpus, skip

pytestmark = [pytest.mark.gpu, needs_gpus()]

SHAPES = [(4096, 14336), (96, 64), (7, 33), (1, 1), (130, 65)]
"""Of more groups than one, and such as end within a block, and within a byte."""


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("bitsandbytes") is None:
        skip(GPU, "bitsandbytes")
    monkeypatch.setattr(compiled, "_compiled", True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_weights_are_those_of_bitsandbytes_to_the_last_bit(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    stored *= torch.linspace(0.01, 2.0, shape[0]).unsqueeze(1)
    weight = NF4(NF4.empty(torch.Size(shape), dtype, CUDA))
    weight.fill(stored)
    theirs = _by_bitsandbytes(weight._parts(), dtype).view(-1)[: stored.numel()].view(shape)
    assert torch.equal(weight.dense(), theirs)
