"""A model on weights in eight bits trains nearly what one on the dense matrices that they stand for
does, whatever of it is computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.adapters.attach import attach, initialise
from llama.assembly.model import build_model
from llama.base.kinds import KINDS
from llama.fused.install import install
from llama.model.config import LINEARS
from llama.model.kept import KEPT, Kept
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.weights.as_held import AsHeld
from llama.weights.open_model import ModelSource
from tests.parity.test_nf4_training import ADAPTERS, CPU, READER, passes, with_b
from tests.support.model_files import TINY

BASES = pytest.mark.parametrize("base", ["int8", "fp8"])
NEAR = 0.1
"""Of all gradients as one vector: each product rounds a token by 4% of a number at most, mostly by
2, and a gradient went through some 26 of them, whose roundings are up and down by chance."""
SAME = 0.02
"""The same products, of inputs that differ in their last digits: some fall to the next code."""


def model(base: str, dense: bool = False, dropout: float = 0.3, **lora: Any) -> Transformer:
    """Its weights in `base`, or in float32 as those are when made dense."""
    reader = AsHeld(READER, KINDS[base], 1, CPU) if dense else READER
    source = ModelSource("tiny", reader, None)
    made = build_model(source, torch.float32, CPU, base="half" if dense else base)
    attach(made, LoRAOptions(4, 8.0, dropout, LINEARS, **lora))
    initialise(made, 0, CPU)
    return with_b(made)


def gradients(made: Transformer) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in passes(made)[1].values()])


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@BASES
@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_are_near_those_over_the_dense_weights(base: str, kind: str) -> None:
    narrow, dense = (model(base, dense, **ADAPTERS[kind]) for dense in (False, True))
    found = gradients(narrow)
    assert 0 < apart(found, gradients(dense)) < NEAR
    narrow.keep([KEPT["block"]] * TINY.n_layers)
    assert torch.equal(gradients(narrow), found)


@BASES
def test_the_fused_block_computes_the_same_products(base: str) -> None:
    made = model(base, dropout=0.0)
    plain = gradients(made)
    assert install(made) is None
    found = gradients(made)
    assert apart(found, plain) < SAME
    for kept in Kept:
        made.keep([kept] * TINY.n_layers)
        assert apart(gradients(made), found) < 1e-6
