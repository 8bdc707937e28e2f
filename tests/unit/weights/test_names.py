"""The table of names against the package `gguf`'s own, and one direction against the other."""

import pytest

from llama.weights import names
from llama.weights.shapes import expected_shapes
from tests.support.model_files import TINY, huggingface_config

NATIVE = sorted(expected_shapes(TINY))


@pytest.mark.parametrize("native", NATIVE)
def test_table_agrees_with_the_gguf_package(native: str) -> None:
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, TINY.n_layers)
    suffixes = (".weight", ".bias")
    assert table.get_name(native, suffixes) == names.to_gguf(native)
    assert table.get_name(names.to_huggingface(native), suffixes) == names.to_gguf(native)


def test_table_covers_what_transformers_has() -> None:
    from transformers import LlamaForCausalLM

    theirs = {name for name, _ in LlamaForCausalLM(huggingface_config(TINY)).named_parameters()}
    assert theirs == {names.to_huggingface(native) for native in NATIVE}


@pytest.mark.parametrize("native", [*NATIVE, "layers.125.attention.wq.bias"])
def test_both_directions(native: str) -> None:
    assert names.from_huggingface(names.to_huggingface(native)) == native
    assert names.from_gguf(names.to_gguf(native)) == native
    assert names.from_meta(native) == native


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "layers.{}.attention.wq.weight",
        "layers.0.attention.wq",
        "layers.01.attention.wq.weight",
        "layers.-1.attention.wq.weight",
        "layers.0.attention.wz.weight",
        "layers.0.1.attention.wq.weight",
        "norm.0.weight",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert names.from_meta(name) is None
    with pytest.raises(KeyError):
        names.to_gguf(name)


def test_layer_index() -> None:
    assert names.layer_index("layers.12.attention.wq.weight") == 12
    assert names.layer_index("norm.weight") is None
