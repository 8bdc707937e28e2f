"""The arithmetic of an adapter, against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from llama.adapters.lora import LoRAAdapter
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear, shard_dim
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.settings import LoRAOptions
from tests.support.closeness import assert_close, sums_of

KINDS = (ColumnParallelLinear, RowParallelLinear)
IN, OUT, RANK, ALPHA, TOKENS = 12, 20, 4, 6.0, 7
LIMIT = sums_of(IN + OUT + RANK + TOKENS)
"""An output is a sum over IN and one over RANK; of gradients there are sums over the others too."""
Linear = ColumnParallelLinear | RowParallelLinear


def never() -> torch.Tensor:
    raise AssertionError("its first values need no weight")


def layer(kind: type[Linear], p: float = 0.0, bias: bool = True) -> Linear:
    """With a frozen base, and an adapter whose B is not zero."""
    generator = torch.Generator().manual_seed(0)
    made = kind(IN, OUT, bias, SINGLE)
    made.requires_grad_(False)
    made.lora = LoRAAdapter(made, LoRAOptions(RANK, ALPHA, p))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def formula(made: Linear, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """y = W x + b + (alpha / r) B A (mask x), in float64."""
    adapter = made.lora
    assert isinstance(adapter, LoRAAdapter) and made.bias is not None
    w, b, a, up = (t.double() for t in (made.weight, made.bias, adapter.a, adapter.b))
    x = x.double()
    return x @ w.t() + b + ALPHA / RANK * ((x * mask) @ a.t() @ up.t())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula_with_its_gradients(kind: type[Linear]) -> None:
    made = layer(kind)
    x = torch.randn(TOKENS, IN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    adapter = made.lora
    assert isinstance(adapter, LoRAAdapter)
    inputs = (x, adapter.a, adapter.b)
    found, expected = made(x), formula(made, x, torch.ones(TOKENS, IN))
    assert_close(found, expected, LIMIT)
    upstream = torch.randn(TOKENS, OUT, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(found, inputs, upstream)
    theirs = torch.autograd.grad(expected, inputs, upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, LIMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_on_the_adapter_s_input_alone_and_only_in_training(kind: type[Linear]) -> None:
    made, x = layer(kind, p=0.5), torch.ones(TOKENS, IN)
    adapter = made.lora
    assert isinstance(adapter, LoRAAdapter)
    torch.manual_seed(0)
    dropped = made.train()(x)
    torch.manual_seed(0)
    mask = (torch.rand(TOKENS, IN) >= 0.5) * 2.0
    assert_close(dropped, formula(made, x, mask), LIMIT)
    whole = formula(made, x, torch.ones(TOKENS, IN))
    assert_close(made.eval()(x), whole, LIMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind: type[Linear]) -> None:
    """Bit for bit: B is zero, and what is added is zeros."""
    made, x = layer(kind, p=0.5), torch.randn(TOKENS, IN)
    adapter = made.lora
    assert isinstance(adapter, LoRAAdapter)
    adapter.reset(torch.Generator().manual_seed(0), never)
    made.lora = None
    expected = made(x)
    made.lora = adapter
    assert torch.equal(made.train()(x), expected)


def test_a_is_drawn_as_peft_draws_it() -> None:
    """kaiming_uniform_ with a = sqrt(5) is uniform in +-1/sqrt(in_features)."""
    made = ColumnParallelLinear(400, 8, False, SINGLE)
    adapter = LoRAAdapter(made, LoRAOptions(64, 1.0, 0.0))
    adapter.reset(torch.Generator().manual_seed(0), never)
    bound = 1 / math.sqrt(400)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(64, 400), a=math.sqrt(5))
    assert 0.99 * bound < adapter.a.abs().max() <= bound
    # Of 25,600 uniform numbers the deviation is known to 0.28% by chance, the ratio of two to 0.4%.
    assert abs(adapter.a.std() / theirs.std() - 1) < 0.02
    assert not adapter.b.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_shards_start_as_slices_of_the_whole(kind: type[Linear], size: int) -> None:
    def started(tp: TensorParallel) -> LoRAAdapter:
        adapter = LoRAAdapter(kind(IN, OUT, False, tp), LoRAOptions(RANK, ALPHA, 0.0))
        adapter.reset(torch.Generator().manual_seed(0), never)
        return adapter

    whole = started(SINGLE)
    shards = [started(TensorParallel(rank, size)) for rank in range(size)]
    for factor in ("a", "b"):
        parts = [getattr(shard, factor) for shard in shards]
        dim = shard_dim(parts[0])
        assert (
            dim
            == {("a", True): None, ("b", True): 0, ("a", False): 1, ("b", False): None}[
                factor, kind is ColumnParallelLinear
            ]
        )
        joined = parts[0] if dim is None else torch.cat(parts, dim=dim)
        assert torch.equal(joined, getattr(whole, factor))
        if dim is None:
            assert all(torch.equal(part, parts[0]) for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_its_delta_gives_what_it_computes(kind: type[Linear]) -> None:
    made = layer(kind)
    x = torch.randn(7, IN, generator=torch.Generator().manual_seed(1))
    expected = made(x).detach()
    adapter = made.lora
    assert isinstance(adapter, LoRAAdapter)
    delta = adapter.delta(made.weight)
    assert delta.dtype == torch.float32 and delta.shape == made.weight.shape
    with torch.no_grad():
        made.weight += delta
    made.lora = None
    # Float32's rounding of sums of IN terms, once in W x and once in the two small products.
    limit = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(made(x).detach(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_shares_of_the_delta_are_cut_from_the_whole(kind: type[Linear], size: int) -> None:
    def delta(tp: TensorParallel) -> torch.Tensor:
        layer = kind(IN, OUT, False, tp)
        adapter = LoRAAdapter(layer, LoRAOptions(RANK, ALPHA, 0.0))
        adapter.reset(torch.Generator().manual_seed(0), never)
        generator = torch.Generator().manual_seed(1)
        b = torch.randn(OUT, RANK, generator=generator)
        rows = adapter.b.shape[0]
        with torch.no_grad():
            adapter.b.copy_(b[tp.rank * rows : (tp.rank + 1) * rows] if rows < OUT else b)
        return adapter.delta(layer.weight)

    shares = [delta(TensorParallel(rank, size)) for rank in range(size)]
    joined = torch.cat(shares, dim=0 if kind is ColumnParallelLinear else 1)
    torch.testing.assert_close(joined, delta(SINGLE), rtol=1e-6, atol=1e-7)


def test_the_scale_is_of_the_rank_or_of_its_root() -> None:
    made = ColumnParallelLinear(IN, OUT, False, SINGLE)
    scales = [
        LoRAAdapter(made, LoRAOptions(16, 32.0, scale=scale)).scale
        for scale in ("alpha/r", "alpha/sqrt(r)")
    ]
    assert scales == [2.0, 8.0]
