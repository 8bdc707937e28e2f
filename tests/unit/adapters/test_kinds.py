"""Every kind of adapter keeps the contract of `Adapter`, whatever it computes."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from llama.adapters.adapter import Adapter
from llama.adapters.attach import adapters, attach, initialise, parameter_groups
from llama.adapters.kinds import KINDS
from llama.adapters.match import expected_shapes, parameter_count
from llama.adapters.peft_config import load_config
from llama.adapters.peft_format import AdapterConfig, contents, load_state, save
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from tests.support.model_files import TINY, random_state


def adapted(kind: str) -> Transformer:
    model = Transformer(TINY)
    model.load_state_dict(random_state(TINY))
    attach(model, LoRAOptions(4, 8.0, 0.0, LINEARS, kind=kind))  # type: ignore[arg-type]
    initialise(model, 0, torch.device("cpu"))
    return model


def test_the_option_and_the_table_name_the_same_kinds() -> None:
    assert set(get_args(get_type_hints(LoRAOptions)["kind"])) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_the_base_and_is_one_of_its_kind(kind: str) -> None:
    model = adapted(kind)
    assert all(type(adapter) is KINDS[kind] for _, adapter in adapters(model))
    for name, adapter in adapters(model):
        weight = model.get_parameter(f"{name}.weight")
        assert isinstance(adapter, Adapter) and not adapter.delta(weight).any()


@pytest.mark.parametrize("kind", KINDS)
def test_its_tensors_are_those_that_it_says(kind: str) -> None:
    model = adapted(kind)
    options = LoRAOptions(4, 8.0, 0.0, LINEARS, kind=kind)  # type: ignore[arg-type]
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trained == expected_shapes(TINY, options)
    assert sum(p.numel() for g in parameter_groups(model) for p in g["params"]) == (
        parameter_count(TINY, options)
    )
    for _, adapter in adapters(model):
        assert {name for name, _ in adapter.tensors()} == set(adapter.PEFT_TENSORS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_folder_gives_back_options_and_tensors(kind: str, tmp_path) -> None:
    model = adapted(kind)
    options = LoRAOptions(4, 8.0, 0.0, LINEARS, kind=kind)  # type: ignore[arg-type]
    state = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    config = AdapterConfig(options, "tiny")
    assert set(contents(state, config)) == {"adapter_model.safetensors", "adapter_config.json"}
    save(tmp_path, state, config)
    found = load_config(tmp_path)
    assert sorted(found.options.targets) == sorted(LINEARS) and found.options.kind == kind
    loaded = load_state(tmp_path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
