"""A model on NF4 weights trains what one on the dense matrices that they stand for does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.adapters.attach import adapters, attach, initialise, trainable_parameters
from llama.assembly.model import build_model
from llama.base.nf4 import NF4
from llama.fused.install import install
from llama.model.config import LINEARS
from llama.model.kept import KEPT, Checkpointing, Kept
from llama.model.transformer import Transformer
from llama.parallel.layers import ParallelLinear
from llama.settings import LoRAOptions
from llama.weights.as_held import AsHeld
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.test_packing import documents, inputs, loss_and_gradients
from tests.support.closeness import SMALL_MODEL, TRAINED, assert_close, distance
from tests.support.model_files import TINY

CPU = torch.device("cpu")
READER = RandomReader(TINY)
DENSE = AsHeld(READER, NF4, 1, CPU)
BATCHES = inputs([documents([9, 5, 12], seed) for seed in range(2)], 1)
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"kind": "dora"},
    "pissa": {"start": "pissa"},
}


def model(base: str, dropout: float = 0.0, **lora: Any) -> Transformer:
    """With weights in `nf4`, or in `half` as those are when made dense, and adapters on all."""
    reader = READER if base == "nf4" else DENSE
    made = build_model(ModelSource("tiny", reader, None), torch.float32, CPU, base=base)
    attach(made, LoRAOptions(4, 8.0, dropout, LINEARS, **lora))
    initialise(made, 0, CPU)
    return with_b(made)


def with_b(made: Transformer) -> Transformer:
    """Adapters whose B is not zero, so that A has a gradient too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, adapter in adapters(made):
            adapter.b.add_(0.02 * torch.randn(adapter.b.shape, generator=generator))
    return made.train()


def passes(made: Transformer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(3)  # of the masks
    return loss_and_gradients(made, BATCHES)


def assert_the_same(
    found: tuple[torch.Tensor, dict[str, torch.Tensor]],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]],
) -> None:
    assert_close(found[0], expected[0], SMALL_MODEL)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_close(found[1][name], gradient, SMALL_MODEL, name)


def test_only_the_layers_of_blocks_are_narrow() -> None:
    made = model("nf4")
    layers = [m for m in made.modules() if isinstance(m, ParallelLinear)]
    assert len(layers) == len(LINEARS) * TINY.n_layers
    narrow = {id(layer.weight) for layer in layers}
    for name, parameter in made.named_parameters():
        wanted = torch.uint8 if id(parameter) in narrow else torch.float32
        assert parameter.dtype == wanted, name
        assert not (parameter.requires_grad and id(parameter) in narrow)


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "block"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_are_those_over_the_dense_weights(
    kind: str, checkpointing: Checkpointing
) -> None:
    narrow, dense = (model(base, 0.3, **ADAPTERS[kind]) for base in ("nf4", "half"))
    narrow.keep([KEPT[checkpointing]] * TINY.n_layers)
    assert_the_same(passes(narrow), passes(dense))
    plain = build_model(ModelSource("tiny", READER, None), torch.float32, CPU)
    assert not torch.equal(  # else nothing would have been rounded
        dense.layers[0].attention.wq.weight, plain.layers[0].attention.wq.weight
    )


@pytest.mark.parametrize("kept", Kept)
def test_so_are_those_of_the_fused_block(kept: Kept) -> None:
    narrow, dense = (model(base) for base in ("nf4", "half"))
    assert install(narrow) is None
    narrow.keep([kept] * TINY.n_layers)
    assert_the_same(passes(narrow), passes(dense))


def test_twenty_steps_train_the_same_adapter() -> None:
    trained = {}
    for base in ("nf4", "half"):
        made = model(base)
        begun = {name: p.detach().clone() for name, p in trainable_parameters(made).items()}
        # eps above the rounding of a gradient, see `tests.support.tiny_runs.deepspeed_json`
        optimizer = torch.optim.AdamW(trainable_parameters(made).values(), lr=5e-3, eps=1e-6)
        for _ in range(20):
            passes(made)
            optimizer.step()
        now = trainable_parameters(made)
        trained[base] = {name: now[name].detach() - begun[name] for name in now}
    assert distance(trained["nf4"], trained["half"]) <= TRAINED
    assert all(value.norm() > 0.01 for value in trained["nf4"].values()), "they have moved"
