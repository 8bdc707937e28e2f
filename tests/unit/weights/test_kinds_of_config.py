"""What a field stands for that is not in config.json, held to transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, MistralConfig

from llama.model.config import ModelConfig
from llama.weights.huggingface_config import KINDS, config_document, read_config
from llama.weights.open_model import open_model
from tests.support.model_files import TINY, huggingface_config
from tests.unit.weights.refusing import edit_json, only, problems

CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig}
REQUIRED = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 192,
    "vocab_size": 96,
}
"""Sizes that no reader should guess: here a file without one of them is refused."""


def sizes(folder: Path, document: dict[str, Any]) -> tuple[ModelConfig, list[str]]:
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return read_config(path)


def theirs(config: Any) -> ModelConfig:
    """transformers' own reading. A window is none of these sizes."""
    return ModelConfig(
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn_dim=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
        max_seq_len=config.max_position_embeddings,
        tied_embedding=config.tie_word_embeddings,
        attention_bias=getattr(config, "attention_bias", False),
        mlp_bias=getattr(config, "mlp_bias", False),
    )


def test_every_kind_is_transformers_own() -> None:
    assert KINDS.keys() == CLASSES.keys()


@pytest.mark.parametrize(
    ("kind", "nulls", "kv_heads"),
    [
        ("llama", (), 16),
        ("llama", ("num_key_value_heads", "head_dim", "rope_scaling"), 16),
        ("mistral", (), 8),
        ("mistral", ("head_dim", "rope_scaling"), 8),
    ],
)
def test_what_is_missing_is_what_transformers_takes(
    kind: str, nulls: tuple[str, ...], kv_heads: int, tmp_path: Path
) -> None:
    """And what is null."""
    document = {"model_type": kind, **REQUIRED, **dict.fromkeys(nulls), "sliding_window": None}
    config, problems = sizes(tmp_path, document)
    assert problems == []
    assert config == theirs(AutoConfig.from_pretrained(tmp_path))
    assert config.n_kv_heads == kv_heads


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_window_is_transformers_own(kind: str, tmp_path: Path) -> None:
    window = getattr(CLASSES[kind](), "sliding_window", None)
    assert KINDS[kind].missing.get("sliding_window") == window
    _, problems = sizes(tmp_path, {"model_type": kind, **REQUIRED})
    assert len(problems) == (window is not None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", REQUIRED)
def test_a_size_is_not_guessed(kind: str, field: str, tmp_path: Path) -> None:
    document = {"model_type": kind, **REQUIRED, "sliding_window": None, field: None}
    assert any(
        f"{field} must be a positive integer" in line for line in sizes(tmp_path, document)[1]
    )


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """As transformers writes one."""
    from transformers import MistralForCausalLM

    fields = huggingface_config(TINY).to_dict()
    kept = {key: fields[key] for key in MistralConfig().to_dict() if key in fields}
    kept |= {"model_type": "mistral", "architectures": None, "sliding_window": None}
    MistralForCausalLM(MistralConfig(**kept)).save_pretrained(tmp_path)
    return tmp_path


def test_mistral_as_transformers_writes_it(mistral: Path, capsys: Any) -> None:
    assert open_model(str(mistral)).config == TINY
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported: where the model was"),
        ({"attention_bias": True}, "attention_bias = true is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
        ({"architectures": ["LlamaForCausalLM"]}, "expected architectures ['MistralForCausalLM']"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_what_mistral_may_not_say(mistral: Path, change: dict[str, Any], expected: str) -> None:
    edit_json(mistral / "config.json", {"sliding_window": False, **change})  # null is taken out
    assert expected in problems(mistral)[0]


def test_mistral_without_a_word_on_its_window(mistral: Path) -> None:
    edit_json(mistral / "config.json", {"layer_types": ["full_attention"] * 2})
    fields = json.loads((mistral / "config.json").read_text())
    assert "sliding_window" not in fields  # edit_json takes out what is null
    line = only(mistral)
    assert "sliding_window is missing, which in this model_type means 4096" in line
    assert line.endswith("set it to null and max_position_embeddings to 4096")


def test_what_is_written_of_mistral_is_its_own(mistral: Path) -> None:
    beside = mistral / "config.json"
    document = config_document(TINY, torch.float32, beside)
    assert document["model_type"] == "mistral" and document["sliding_window"] is None
