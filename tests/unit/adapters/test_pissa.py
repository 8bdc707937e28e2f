"""PiSSA: the factors that it begins with are PEFT's, the model is then what it was, and what is
written is right on the untouched base."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.adapters.lora import LoRAAdapter
from llama.adapters.pissa import PissaAdapter, principal
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear
from llama.parallel.mesh import SINGLE
from llama.settings import LoRAOptions
from tests.support.closeness import assert_close, difference, sums_of

KINDS = (ColumnParallelLinear, RowParallelLinear)
IN, OUT, RANK, ALPHA, TOKENS = 24, 36, 4, 6.0, 7
LIMIT = sums_of(4 * (IN + OUT))
"""Of a singular value decomposition, and of sums over IN and OUT before and after it."""


def begun(
    kind: Any = ColumnParallelLinear, start: str = "pissa", dtype: Any = torch.float32
) -> Any:
    """A frozen layer with an adapter that begins from its weight."""
    made = kind(IN, OUT, False, SINGLE).requires_grad_(False)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(0))
    made.to(dtype)
    made.lora = PissaAdapter(made, LoRAOptions(RANK, ALPHA, 0.5, start="pissa"))
    made.lora.reset(torch.Generator().manual_seed(1), made.weight.float)
    return made.to(dtype)


def inputs() -> torch.Tensor:
    return torch.randn(TOKENS, IN, generator=torch.Generator().manual_seed(2))


def moved(made: Any) -> Any:
    """As after some training."""
    with torch.no_grad():
        for factor in (made.lora.a, made.lora.b):
            factor += 0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(3))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_at_the_base_to_the_last_digit(kind: Any, dtype: torch.dtype) -> None:
    """With dropout too, which PEFT's form applies to the strongest part of the weight."""
    made, x = begun(kind, dtype=dtype), inputs().to(dtype)
    adapter, made.lora = made.lora, None
    expected = made(x)
    made.lora = adapter
    assert torch.equal(made.train()(x), expected)
    assert not adapter.delta(made.weight).any()
    assert adapter.a.any() and adapter.b.any()


def test_the_first_factors_are_peft_s() -> None:
    from peft import LoraConfig, get_peft_model

    made = begun()
    base = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False))
    with torch.no_grad():
        base[0].weight.copy_(made.weight)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,  # type: ignore[arg-type]  # it takes any number
        target_modules=["0"],
        init_lora_weights="pissa",
    )
    theirs: Any = get_peft_model(base, config).base_model.model[0]  # type: ignore[index]
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    assert_close(made.lora.a, a, LIMIT)
    assert_close(made.lora.b, b, LIMIT)
    # Once both have learnt the same, their residual and our sum give the same.
    with torch.no_grad():
        a *= 1.5
        made.lora.a *= 1.5
        assert_close(made.eval()(inputs()), theirs(inputs()), LIMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_residual_and_the_factors(kind: Any) -> None:
    """`(W - s B0 A0) x + s B A x`, in float64."""
    made, x = moved(begun(kind)).eval(), inputs()
    w, a, b, a0, b0 = (
        t.double() for t in (made.weight, made.lora.a, made.lora.b, made.lora.a0, made.lora.b0)
    )
    scale = ALPHA / RANK
    expected = x.double() @ (w - scale * b0 @ a0 + scale * b @ a).t()
    assert_close(made(x), expected, LIMIT)
    merged = made.weight + made.lora.delta(made.weight)
    assert_close(x @ merged.t(), expected, LIMIT)


def test_what_is_written_is_an_ordinary_adapter_of_the_base() -> None:
    made, x = moved(begun()).eval(), inputs()
    tensors = {name: p.detach() for name, p in made.lora.named_parameters()}
    written = PissaAdapter.written(tensors)
    told = PissaAdapter.to_peft(made.lora.options)
    plain = LoRAAdapter(made, LoRAOptions(told["r"], told["lora_alpha"], 0.0))
    with torch.no_grad():
        plain.a.copy_(written["a"])
        plain.b.copy_(written["b"])
    expected = made(x)
    made.lora = plain
    assert_close(made(x), expected, LIMIT)
    again = PissaAdapter.held(written)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_the_scale_is_kept_where_it_is_of_the_root() -> None:
    options = LoRAOptions(RANK, ALPHA, scale="alpha/sqrt(r)", start="pissa")
    told = PissaAdapter.to_peft(options)
    assert told["use_rslora"] and told["r"] == 2 * RANK
    assert told["lora_alpha"] / told["r"] ** 0.5 == pytest.approx(ALPHA / RANK**0.5, rel=1e-12)


def test_a_search_comes_near_and_draws_by_its_generator() -> None:
    """Of a weight whose singular values fall, as those of trained ones do."""
    generator = torch.Generator().manual_seed(5)
    u, _, v = torch.linalg.svd(torch.randn(OUT, IN, generator=generator), full_matrices=False)
    weight = u * 0.7 ** torch.arange(IN) @ v

    def product(niter: int | None, seed: int = 0) -> torch.Tensor:
        a, b = principal(weight, RANK, niter, torch.Generator().manual_seed(seed))
        return b @ a

    exact = product(None)
    assert difference(product(0), exact) > 1e-3
    assert difference(product(16), exact) < 1e-5
    before = torch.get_rng_state()
    assert torch.equal(product(1), product(1)) and not torch.equal(product(1), product(1, seed=9))
    assert torch.equal(torch.get_rng_state(), before), "a run's own draws are as without it"
