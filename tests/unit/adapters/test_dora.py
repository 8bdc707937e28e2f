"""The arithmetic of DoRA, against the formula written out and against PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.adapters.dora import DoRAAdapter
from llama.adapters.lora import LoRAAdapter
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.settings import LoRAOptions
from tests.support.closeness import assert_close, difference, sums_of

KINDS = (ColumnParallelLinear, RowParallelLinear)
IN, OUT, RANK, ALPHA, TOKENS = 12, 20, 4, 6.0, 7
OPTIONS = LoRAOptions(RANK, ALPHA, 0.0, kind="dora")
LIMIT = sums_of(2 * IN + OUT + RANK + TOKENS)
"""As `test_lora`'s, and the sums of a row's squares."""


def layer(kind: Any, bias: bool = True) -> Any:
    """With a frozen base, and an adapter as after some training."""
    made = kind(IN, OUT, bias, SINGLE).requires_grad_(False)
    made.lora = DoRAAdapter(made, OPTIONS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def inputs(seed: int, width: int = IN) -> torch.Tensor:
    return torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(seed))


def formula(made: Any, x: torch.Tensor) -> torch.Tensor:
    """m (W + s B A) / |W + s B A| x + b, in float64, the length with no gradient."""
    w, a, b, m = (t.double() for t in (made.weight, made.lora.a, made.lora.b, made.lora.m))
    turned = w + ALPHA / RANK * b @ a
    lengths = turned.norm(dim=1).detach()
    y = x.double() @ (turned * (m / lengths).unsqueeze(1)).t()
    return y if made.bias is None else y + made.bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula_with_its_gradients(kind: Any, bias: bool) -> None:
    made, x = layer(kind, bias), inputs(1).requires_grad_()
    tensors = (x, made.lora.a, made.lora.b, made.lora.m)
    found, expected = made(x), formula(made, x)
    assert_close(found, expected, LIMIT)
    upstream = inputs(2, OUT)
    ours = torch.autograd.grad(found, tensors, upstream)
    theirs = torch.autograd.grad(expected, tensors, upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, LIMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_its_delta_gives_what_it_computes(kind: Any) -> None:
    made, x = layer(kind), inputs(1)
    expected, delta = formula(made, x), made.lora.delta(made.weight)
    assert delta.dtype == torch.float32 and delta.shape == made.weight.shape
    with torch.no_grad():
        made.weight += delta
    made.lora = None
    assert_close(made(x), expected, LIMIT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_is_the_base(kind: Any) -> None:
    """Within one rounding of a length; switched off, to the last digit."""
    made, x = layer(kind), inputs(1)
    made.lora.reset(torch.Generator().manual_seed(0), made.weight.clone)
    adapter, made.lora = made.lora, None
    expected = made(x)
    made.lora = adapter
    assert_close(made.lora.m, made.weight.norm(dim=1), LIMIT)
    assert_close(made(x), expected, sums_of(4))
    adapter.scale = 0.0
    assert torch.equal(made(x), expected)


def test_it_is_peft_s() -> None:
    from peft import LoraConfig, get_peft_model

    made = layer(ColumnParallelLinear, bias=True)
    base = torch.nn.Sequential(torch.nn.Linear(IN, OUT))
    with torch.no_grad():
        base[0].weight.copy_(made.weight)
        base[0].bias.copy_(made.bias)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,  # type: ignore[arg-type]  # it takes any number
        target_modules=["0"],
        use_dora=True,
    )
    theirs: Any = get_peft_model(base, config).base_model.model[0]  # type: ignore[index]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(made.lora.a)
        theirs.lora_B["default"].weight.copy_(made.lora.b)
        theirs.lora_magnitude_vector["default"].weight.copy_(made.lora.m)
    assert_close(made(inputs(1)), theirs(inputs(1)), LIMIT)


def test_rows_that_are_cut_are_measured_over_all_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two row-parallel shards, whose sums meet in a stand-in for the collective."""
    whole = layer(RowParallelLinear, bias=False)
    shards = []
    for rank in range(2):
        part = slice(rank * IN // 2, (rank + 1) * IN // 2)
        shard: Any = RowParallelLinear(IN, OUT, False, TensorParallel(rank, 2))
        shard.lora = DoRAAdapter(shard, OPTIONS)
        with torch.no_grad():
            shard.weight.copy_(whole.weight[:, part])
            shard.lora.a.copy_(whole.lora.a[:, part])
            shard.lora.b.copy_(whole.lora.b)
            shard.lora.m.copy_(whole.lora.m)
        shards.append(shard)
    own = [shard.lora._lengths(shard.weight).square() for shard in shards]
    for squares in own:
        assert difference(squares, own[0] + own[1]) > 0.1, "one shard alone is not enough"
    sums = {0: own[1], 1: own[0]}

    def all_reduce_(tp: TensorParallel, tensor: torch.Tensor) -> None:
        tensor += sums[tp.rank]

    monkeypatch.setattr(TensorParallel, "all_reduce_", all_reduce_)
    with torch.no_grad():
        joined = torch.cat([shard.lora.delta(shard.weight) for shard in shards], dim=1)
    monkeypatch.undo()
    assert_close(joined, whole.lora.delta(whole.weight), LIMIT)


def test_no_matrix_of_the_weight_s_size_is_made() -> None:
    """Beyond LoRA's own: in training each layer's would live at once."""
    from llama.planning.storages import LiveStorages

    kind, rows, columns = ColumnParallelLinear, 512, 256

    def peak(adapter: type[LoRAAdapter], name: Any) -> int:
        made: Any = kind(columns, rows, False, SINGLE).requires_grad_(False)
        made.lora = adapter(made, LoRAOptions(RANK, ALPHA, 0.0, kind=name))
        storages = LiveStorages()
        with storages:
            made(torch.ones(2, columns))
        return storages.peak

    more = peak(DoRAAdapter, "dora") - peak(LoRAAdapter, "lora")
    assert more < rows * columns  # bytes: a quarter of such a matrix in float32
