"""Counts of the published models, and where they come from."""

from dataclasses import replace

import pytest

from llama.adapters.match import parameter_count
from llama.model.presets import PRESETS
from llama.settings import LoRAOptions

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert PRESETS[name].parameter_count() == count


def test_every_preset_has_its_count_checked() -> None:
    assert set(PRESETS) == set(PUBLISHED)


def test_counts_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tests.support.model_files import huggingface_config

    for name, config in PRESETS.items():
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(huggingface_config(config.with_layers(2)))
        assert model.num_parameters() == config.with_layers(2).parameter_count(), name


def test_the_report_s_counts() -> None:
    """7B whose feed-forward layers carry biases, with rank-16 adapters on wq and wv."""
    config = replace(PRESETS["llama-7b"], mlp_bias=True)
    adapters = parameter_count(config, LoRAOptions(16, targets=("wq", "wv")))
    assert adapters == 8_388_608
    assert config.parameter_count() + adapters == 6_747_639_808


def test_what_the_generations_changed() -> None:
    assert [PRESETS[f"llama-{size}"].norm_eps for size in ("7b", "13b", "30b", "65b")] == [
        1e-6,
        1e-6,
        1e-6,
        1e-5,
    ]
    assert PRESETS["llama-2-7b"].max_seq_len == 4096
    assert PRESETS["llama-3-8b"].rope_scaling is None
    for name, factor in (("llama-3.1-405b", 8.0), ("llama-3.2-3b", 32.0)):
        scaling = PRESETS[name].rope_scaling
        assert scaling is not None and scaling.factor == factor
        assert PRESETS[name].rope_theta == 500000.0
    assert [name for name, config in PRESETS.items() if config.tied_embedding] == [
        "llama-3.2-1b",
        "llama-3.2-3b",
        "smollm2-135m",
    ]


def test_head_dimensions() -> None:
    assert {
        name: config.head_dim for name, config in PRESETS.items() if config.head_dim != 128
    } == {
        "llama-3.2-1b": 64,
        "smollm2-135m": 64,
    }


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_the_model_built(biases: bool, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    from llama.adapters.attach import attach, trainable_parameters
    from llama.model.config import LINEARS
    from llama.model.transformer import Transformer

    config = replace(
        PRESETS["llama-3.2-1b"].with_layers(3),
        tied_embedding=tied,
        attention_bias=biases,
        mlp_bias=biases,
    )
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameter_count()
    attach(model, LoRAOptions(8, 16.0, 0.0, LINEARS))
    trainable = sum(p.numel() for p in trainable_parameters(model).values())
    assert trainable == parameter_count(config, LoRAOptions(8, targets=LINEARS))
