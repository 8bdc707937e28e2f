"""What DeepSpeed is told of each parameter: a sharded one is marked, a replicated one is not.

A sharded one without the mark is left out of the gradient's norm on every rank but the first; a
replicated one with it is counted once for each rank.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from llama.adapters.attach import attach, initialise
from llama.errors import UserError
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    mark_shard,
    shard_dim,
)
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.settings import LoRAOptions
from llama.weights.load import load_weights
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY

CONFIG = replace(TINY, attention_bias=True, mlp_bias=True)
COLUMN = ("wq", "wk", "wv", "w1", "w3")


def expected_dim(name: str) -> int | None:
    """Megatron's: columns cut by rows of W, rows by columns, what follows a sum not at all."""
    if "norm" in name:
        return None
    if name.startswith(("tok_embeddings", "output")):
        return 0
    column = any(f".{layer}." in name for layer in COLUMN)
    if name.endswith(".lora.a"):
        return None if column else 1
    if name.endswith((".lora.b", ".bias")):
        return 0 if column else None
    return 0 if column else 1


def whole_run(tp: TensorParallel) -> nn.Module:
    """Built, adapted, loaded and started as a run does it."""
    with torch.device("meta"):
        model = Transformer(CONFIG, tp)
    load_weights(model, RandomReader(CONFIG), torch.float32, torch.device("cpu"), tp.rank, tp.size)
    attach(model, LoRAOptions(4, 8.0, 0.0, LINEARS))
    initialise(model, 0, torch.device("cpu"))
    return model


@pytest.mark.parametrize("rank", [0, 1])
def test_every_parameter_carries_the_right_mark(rank: int) -> None:
    whole = {name: p.shape for name, p in whole_run(SINGLE).named_parameters()}
    for name, parameter in whole_run(TensorParallel(rank, 2)).named_parameters():
        dim = expected_dim(name)
        assert shard_dim(parameter) == dim, name
        assert getattr(parameter, "model_parallel", False) == (dim is not None), name
        expected = [s // 2 if axis == dim else s for axis, s in enumerate(whole[name])]
        assert list(parameter.shape) == expected, name


def test_deepspeed_reads_the_mark_as_it_is_meant() -> None:
    from deepspeed.runtime.utils import is_model_parallel_parameter

    sharded, replicated = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    mark_shard(sharded, 0)
    mark_shard(replicated, None)
    assert is_model_parallel_parameter(sharded)
    assert not is_model_parallel_parameter(replicated)


@pytest.mark.parametrize(
    "build",
    [
        lambda tp: ColumnParallelLinear(4, 9, False, tp),
        lambda tp: RowParallelLinear(9, 4, False, tp),
        lambda tp: VocabParallelEmbedding(9, 4, tp),
    ],
    ids=["column", "row", "vocabulary"],
)
def test_what_does_not_divide_is_refused(build) -> None:
    with pytest.raises(UserError, match=r"--tensor_parallel 2 does not divide .*9"):
        build(TensorParallel(0, 2))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
def test_alone_they_are_torch_s_linear_layer(
    kind: type[ColumnParallelLinear | RowParallelLinear], bias: bool, trainable: bool
) -> None:
    layer, plain = kind(6, 8, bias, SINGLE), nn.Linear(6, 8, bias)
    with torch.no_grad():
        for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
            ours.copy_(theirs)
    layer.requires_grad_(trainable)
    x = torch.randn(5, 6).requires_grad_()
    found, expected = layer(x), plain(x)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(5, 8)
    (ours,) = torch.autograd.grad(found, x, upstream, retain_graph=trainable)
    (theirs,) = torch.autograd.grad(expected, x, upstream, retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    if trainable:
        ours = torch.autograd.grad(found, list(layer.parameters()), upstream)
        theirs = torch.autograd.grad(expected, list(plain.parameters()), upstream)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)
