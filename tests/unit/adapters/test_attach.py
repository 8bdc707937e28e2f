"""Which layers get an adapter, what is frozen, and how adapters start."""

from __future__ import annotations

import pytest
import torch

from llama.adapters.attach import (
    adapters,
    attach,
    initialise,
    switched_off,
    trainable_parameters,
)
from llama.adapters.lora import LoRAAdapter
from llama.errors import UserError
from llama.model.config import LINEARS
from llama.model.documents import Documents
from llama.model.transformer import Transformer
from llama.parallel.layers import shard_dim
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.settings import LoRAOptions
from tests.support.model_files import TINY, random_state

CPU = torch.device("cpu")


def adapted(
    targets: tuple[str, ...] = ("wq", "wv"), seed: int = 0, tp: TensorParallel = SINGLE
) -> Transformer:
    with torch.device("meta"):
        model = Transformer(TINY, tp)
        attach(model, LoRAOptions(4, 8.0, 0.1, targets))
    initialise(model, seed, CPU)
    return model


def values(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize("targets", [("wq", "wv"), ("w2",), LINEARS])
def test_only_the_adapters_train(targets: tuple[str, ...]) -> None:
    model = Transformer(TINY)
    attach(model, LoRAOptions(4, 8.0, 0.1, targets))
    part = {name: "attention" if name in ("wq", "wk", "wv", "wo") else "feed_forward"
            for name in LINEARS}  # fmt: skip
    expected = {
        f"layers.{layer}.{part[name]}.{name}.lora.{factor}"
        for layer in range(TINY.n_layers)
        for name in targets
        for factor in ("a", "b")
    }
    assert set(trainable_parameters(model)) == expected
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in expected), name


def test_the_base_layers_keep_their_names() -> None:
    model = Transformer(TINY)
    before = set(model.state_dict())
    attach(model, LoRAOptions(4, 8.0, 0.1, LINEARS))
    assert {name for name in model.state_dict() if ".lora." not in name} == before
    model.load_state_dict(random_state(TINY), strict=False)


def test_switched_off_the_model_is_its_base() -> None:
    model = Transformer(TINY)
    model.load_state_dict(random_state(TINY))
    ids = torch.tensor([5, 17, 3, 60, 2])
    call = ids, torch.arange(5), Documents((0, 3, 5))
    with torch.no_grad():
        base = model(*call)
    attach(model, LoRAOptions(4, 8.0, 0.0, LINEARS))
    initialise(model, 0, CPU)
    for _, adapter in adapters(model):
        torch.nn.init.normal_(adapter.b)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        trained = model(*call)
        with switched_off(model):
            assert torch.equal(model(*call), base)
        assert torch.equal(model(*call), trained) and not torch.equal(trained, base)


def test_unmatched_targets_are_all_named() -> None:
    with pytest.raises(UserError) as raised:
        attach(Transformer(TINY), LoRAOptions(4, 8.0, 0.1, ("wq", "wz", "output")))
    assert len(raised.value.problems) == 2
    for name, problem in zip(("wz", "output"), raised.value.problems, strict=True):
        assert f"'{name}' matches no layer" in problem and "wq, wk" in problem


def test_the_start_depends_on_seed_and_layer_alone() -> None:
    few, all_of_them = values(adapted()), values(adapted(LINEARS))
    for name, value in few.items():
        assert torch.equal(value, all_of_them[name]), name
    assert all(torch.equal(value, few[name]) for name, value in values(adapted()).items())
    other = values(adapted(seed=1))
    factors = [name for name in few if name.endswith(".a")]
    assert not any(torch.equal(few[name], other[name]) for name in factors)
    first, second = (few[f"layers.{layer}.attention.wq.lora.a"] for layer in (0, 1))
    assert not torch.equal(first, second)
    assert not any(value.any() for name, value in few.items() if name.endswith(".b"))


def test_the_start_does_not_touch_the_default_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    adapted()
    assert torch.equal(torch.get_rng_state(), before)


def test_shards_start_as_the_whole_and_keep_their_marks() -> None:
    whole = values(adapted(LINEARS))
    shards = [trainable_parameters(adapted(LINEARS, tp=TensorParallel(r, 2))) for r in range(2)]
    for name, expected in whole.items():
        parts = [shard[name] for shard in shards]
        dim = shard_dim(parts[0])
        assert all(not part.is_meta and part.requires_grad for part in parts)
        assert all(getattr(part, "model_parallel", False) == (dim is not None) for part in parts)
        joined = parts[0] if dim is None else torch.cat(list(parts), dim=dim)
        assert torch.equal(joined, expected), name


def test_adapters_are_listed_by_their_layer() -> None:
    found = dict(adapters(adapted()))
    assert set(found) == {f"layers.{i}.attention.{name}" for i in (0, 1) for name in ("wq", "wv")}
    assert all(isinstance(adapter, LoRAAdapter) for adapter in found.values())
