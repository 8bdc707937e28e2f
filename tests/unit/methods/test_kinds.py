"""Every way to train keeps the contract of `Method`, on a model of a few kilobytes."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import get_args, get_type_hints

import pytest
import torch

from llama.adapters.attach import parameter_groups, trainable_parameters
from llama.methods.kinds import KINDS, most_parameters
from llama.methods.method import Method
from llama.model.transformer import Transformer
from llama.settings import BenchmarkOptions, LoRAOptions, TrainOptions, VerifyOptions
from llama.settings.deepspeed_json.auto import RATES
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY, random_state, tied

MODELS = {
    "untied": TINY,
    "tied": tied(TINY),
    "with biases": replace(TINY, attention_bias=True, mlp_bias=True),
}


def prepared(kind: str, config=TINY) -> tuple[Method, Transformer]:
    method = KINDS[kind](LoRAOptions(4), ModelSource("tiny", RandomReader(config), None))
    model = Transformer(config)
    state = random_state(config)
    model.load_state_dict(state, strict=False)
    model.requires_grad_(False)
    method.prepare(model, 0, torch.device("cpu"))
    return method, model


def test_the_options_and_the_tables_name_the_same_kinds() -> None:
    for options in (TrainOptions, BenchmarkOptions, VerifyOptions):
        assert set(get_args(get_type_hints(options)["method"])) == set(KINDS) == set(RATES)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_what_it_says(kind: str, config) -> None:
    method, model = prepared(kind, config)
    trained = {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}
    assert trained == method.shapes()
    (group,) = parameter_groups(model)
    assert len({id(p) for p in group["params"]}) == len(trained), "a tied matrix once"
    count = sum(map(prod, trained.values()))
    assert count <= method.most_parameters()
    total = sum(p.numel() for p in model.parameters())
    assert total == config.parameter_count() + method.added()


def test_the_best_and_the_last_have_names_of_their_own() -> None:
    names = [name for kind in KINDS.values() for name in (kind.RESULT, kind.LAST)]
    assert len({*names}) == 2 * len(KINDS)


def test_under_full_all_trains_and_nothing_is_added() -> None:
    method, model = prepared("full")
    assert all(p.requires_grad for p in model.parameters())
    assert method.added() == 0
    count = TINY.parameter_count()
    assert [method.result_bytes(p) for p in ("fp16", "bf16", "fp32")] == [
        2 * count,
        2 * count,
        4 * count,
    ]


def test_a_checkpoint_of_either_kind_is_read_to_be_refused_for_its_kind() -> None:
    """Not for its size, which would not say what is wrong."""
    source = ModelSource("tiny", RandomReader(TINY), None)
    for method in ("lora", "full"):
        options = TrainOptions(deepspeed="x", method=method)  # type: ignore[arg-type]
        assert most_parameters(source, options) >= TINY.parameter_count()
