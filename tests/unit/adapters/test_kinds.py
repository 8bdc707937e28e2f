"""Every kind of adapter keeps the contract of `Adapter`, whatever it computes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from llama.adapters.adapter import Adapter
from llama.adapters.attach import adapters, attach, fixed_parameters, initialise, parameter_groups
from llama.adapters.kinds import FROM_BASE, KINDS, kind_of
from llama.adapters.match import expected_shapes, fixed_shapes, parameter_count
from llama.adapters.merged import Merged
from llama.adapters.peft_config import load_config
from llama.adapters.peft_format import AdapterConfig, contents, held, load_state, save
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.parallel.layers import ColumnParallelLinear, shard_dim
from llama.settings import LoRAOptions
from llama.weights.open_model import open_model
from tests.support.closeness import difference, sums_of
from tests.support.model_files import TINY, random_state, write_meta

EVERY = {
    "lora": LoRAOptions(4, 8.0, 0.0, LINEARS),
    "dora": LoRAOptions(4, 8.0, 0.0, LINEARS, kind="dora"),
    "pissa": LoRAOptions(4, 8.0, 0.0, LINEARS, start="pissa"),
}
"""Each kind, and each way to begin."""


def adapted(options: LoRAOptions) -> Transformer:
    model = Transformer(TINY)
    model.load_state_dict(random_state(TINY))
    attach(model, options)
    initialise(model, 0, torch.device("cpu"))
    return model


def test_the_option_and_the_table_name_the_same_kinds() -> None:
    assert set(get_args(get_type_hints(LoRAOptions)["kind"])) == set(KINDS)


def test_every_class_of_the_tables_is_among_them() -> None:
    classes = {kind_of(options) for options in EVERY.values()}
    assert classes == {*KINDS.values(), *FROM_BASE.values()}


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_it_starts_at_the_base_and_is_one_of_its_kind(options: LoRAOptions) -> None:
    model = adapted(options)
    assert all(type(adapter) is kind_of(options) for _, adapter in adapters(model))
    for name, adapter in adapters(model):
        weight = model.get_parameter(f"{name}.weight")
        assert isinstance(adapter, Adapter)
        # A length divided by itself, summed in another order, is 1 but for rounding.
        assert difference(weight + adapter.delta(weight), weight) < sums_of(4)


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_rows_of_what_merging_makes_are_those_of_the_whole(
    options: LoRAOptions, tmp_path: Path
) -> None:
    model = adapted(options)
    write_meta(tmp_path, TINY, random_state(TINY))
    layers, state = {}, {}
    for layer, adapter in adapters(model):
        layers[layer] = options
        for name, tensor in adapter.named_parameters():
            torch.nn.init.normal_(tensor, 1.0)
            state[f"{layer}.lora.{name}"] = tensor
    merged = Merged(open_model(str(tmp_path)).reader, layers, state)
    for layer, adapter in adapters(model):
        weight = model.get_parameter(f"{layer}.weight")
        expected = weight + adapter.delta(weight)
        parts = [merged.read(f"{layer}.weight", 0, 0, 5), merged.read(f"{layer}.weight", 0, 5)]
        # The product of a part may be summed in another order, over the inputs for DoRA's lengths.
        assert difference(torch.cat(parts), expected) < sums_of(weight.shape[1])
        columns = merged.read(f"{layer}.weight", 1, 3, 4)
        assert difference(columns, expected[:, 3:7]) < sums_of(weight.shape[1])


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_its_tensors_are_those_that_it_says(options: LoRAOptions) -> None:
    model = adapted(options)
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trained == expected_shapes(TINY, options)
    fixed = {n: tuple(p.shape) for n, p in fixed_parameters(model).items()}
    assert fixed == fixed_shapes(TINY, options)
    assert not any(p.requires_grad for p in fixed_parameters(model).values())
    assert sum(p.numel() for g in parameter_groups(model) for p in g["params"]) == (
        parameter_count(TINY, options)
    )
    for name, adapter in adapters(model):
        assert {own for own, _ in adapter.tensors()} == set(adapter.PEFT_TENSORS)
        assert (adapter.low_rank() is not None) == adapter.FUSED
        cuts = {own: shard_dim(tensor) for own, tensor in adapter.tensors()}
        is_column = isinstance(model.get_submodule(name), ColumnParallelLinear)
        assert cuts == {own: cut.of(is_column) for own, cut in adapter.CUT.items()}


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_a_peft_folder_gives_back_options_and_tensors(options: LoRAOptions, tmp_path) -> None:
    model = adapted(options)
    state = {n: p.detach() for n, p in model.named_parameters() if ".lora." in n}
    config = AdapterConfig(options, "tiny")
    assert set(contents(state, config)) == {"adapter_model.safetensors", "adapter_config.json"}
    save(tmp_path, state, config)
    found = load_config(tmp_path)
    assert sorted(found.options.targets) == sorted(LINEARS)
    assert found.options.kind == options.kind and found.options.start == "uniform"
    loaded = held(load_state(tmp_path), options)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
