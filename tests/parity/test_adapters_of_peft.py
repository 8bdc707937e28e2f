"""Adapters as PEFT writes them, however their settings say which layers are meant: the logits are
those that PEFT computes from the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.assembly.model import check_adapter, ready_model
from llama.errors import UserError
from llama.model.documents import Documents
from llama.weights.open_model import open_model
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY, write_huggingface

IDS = torch.arange(12) * 5 % TINY.vocab_size
SETTINGS: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ["q_proj", "v_proj"]},
    "the word": {"target_modules": "all-linear"},
    "full names": {
        "target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    },
    "ends of names": {"target_modules": ["self_attn.k_proj", "1.mlp.down_proj"]},
    "an expression": {"target_modules": r".*\.(q_proj|v_proj)"},
    "some layers": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]},
    "one layer": {
        "target_modules": ["q_proj"],
        "layers_to_transform": 0,
        "layers_pattern": "layers",
    },
    "all but": {"target_modules": "all-linear", "exclude_modules": ["down_proj", "k_proj"]},
    "the scale of the root": {"target_modules": ["gate_proj"], "use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "o_proj", "up_proj"], "use_dora": True},
    "DoRA of some layers": {
        "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [1],
        "use_dora": True,
        "use_rslora": True,
    },
    "ranks and alphas": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 6},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
    "ranks by an expression, and by the name of the same layer after it": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 3, r".*\.0\..*q_proj": 2, "q_proj": 6},
    },
    "both and the root": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 5},
        "use_rslora": True,
    },
}


def written(folder: Path, base: Path, fields: dict[str, Any]) -> torch.Tensor:
    """A PEFT folder with B away from zero; PEFT's logits."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **fields)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    adapted.save_pretrained(folder)
    plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    again: Any = PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        return again(IDS.unsqueeze(0)).logits[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_huggingface(folder, TINY)
    return folder


def ours(base: Path, folder: Path) -> torch.Tensor:
    model = ready_model(open_model(str(base)), folder, "float32")
    with torch.no_grad():
        return model(IDS, torch.arange(len(IDS)), Documents((0, len(IDS))))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_logits_are_peft_s(name: str, base: Path, tmp_path: Path) -> None:
    expected = written(tmp_path, base, SETTINGS[name])
    assert_close(ours(base, tmp_path), expected, SMALL_MODEL)


def test_words_that_other_programs_leave_there(base: Path, tmp_path: Path) -> None:
    """PEFT writes the names that `all-linear` found; others leave the word."""
    expected = written(tmp_path, base, SETTINGS["the word"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "all-linear"}))
    assert_close(ours(base, tmp_path), expected, SMALL_MODEL)


@pytest.mark.parametrize("name", ["a list", "the word", "full names", "some layers"])
def test_a_layer_that_is_named_and_has_no_tensors(name: str, base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written(tmp_path, base, SETTINGS[name])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    layer = sorted(tensors)[0].rpartition(".lora_")[0]
    save_file({n: t for n, t in tensors.items() if not n.startswith(f"{layer}.")}, path)
    with pytest.raises(UserError, match="missing tensor"):
        check_adapter(tmp_path, TINY)
