"""Every wrong set of sizes, tensors or shards is refused, by name, before weights load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.weights.open_model import open_model
from tests.support.model_files import (
    LLAMA31_SCALING,
    TINY,
    random_state,
    tied,
    write_huggingface,
    write_meta,
)
from tests.unit.weights.refusing import edit_json, edit_safetensors, edit_shard, only, problems

SHARD = "consolidated.00.pth"
WQ = "layers.0.attention.wq.weight"
HF_WQ = "model.layers.0.self_attn.q_proj.weight"


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "empty"),
        (b"{", "line 1: not JSON"),
        (b"[]", "expected a JSON object, found a list"),
        (b'{"dim": 1,\n}', "line 2: not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "not JSON"),
        (b'{"dim": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_bad_json(meta: Path, hf: Path, text: bytes, expected: str) -> None:
    for path in (meta / "params.json", hf / "config.json"):
        path.write_bytes(text)
        line = only(path.parent)
        assert line.startswith(f"{path}: ") and expected in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dim": None}, "dim must be a positive integer; it is missing"),
        ({"n_layers": "2"}, "n_layers must be a positive integer; found '2'"),
        ({"n_layers": 3}, "the sizes say 3 layers, the weights hold 2"),
        ({"n_layers": 10**12}, "the weights hold 2"),
        ({"n_heads": True}, "n_heads must be a positive integer"),
        ({"n_kv_heads": 3}, "8 heads cannot share 3 key/value heads"),
        ({"n_kv_heads": 2}, "wrong shape: layers.0.attention.wk.weight"),
        ({"norm_eps": float("nan")}, "norm_eps must be a positive number; found NaN"),
        ({"norm_eps": -1e-5}, "norm_eps must be a positive number"),
        ({"rope_theta": 10**400}, "rope_theta must be a positive number"),
        ({"vocab_size": 97}, "wrong shape: tok_embeddings.weight"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer"),
        ({"multiple_of": 128}, "give feed-forward width 256, but w1 has 192 rows"),
        ({"ffn_dim_multiplier": 1.3}, "give feed-forward width 384, but w1 has 192 rows"),
        ({"head_dim": 16}, "head_dim must be dim / n_heads = 8"),
        ({"moe": {"num_experts": 8}}, "moe = "),
        ({"use_scaled_rope": 1}, "use_scaled_rope must be true or false"),
    ],
)
def test_wrong_params(meta: Path, change: dict[str, Any], expected: str) -> None:
    edit_json(meta / "params.json", change)
    assert any(expected in line for line in problems(meta)), problems(meta)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "qwen2"}, "expected model_type 'llama' or 'mistral', found model_type 'q"),
        ({"model_type": ["llama"]}, 'found model_type ["llama"]'),
        ({"model_type": "mistral"}, "expected architectures ['MistralForCausalLM']"),
        ({"model_type": None}, "found no model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected architectures"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"hidden_size": None}, "hidden_size must be"),
        ({"num_hidden_layers": 1}, "the sizes say 1 layers, the weights hold 2"),
        ({"vocab_size": 128}, "wrong shape: model.embed_tokens.weight has shape [96, 64]"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs"),
        ({"attention_bias": True}, "missing tensor model.layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": "yes"}, "mlp_bias must be true or false"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type 3 is not supported; known are default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor must be"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: factor must be"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0}}, "factor must be a positive"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2, "rope_theta": 1}},
            "yarn needs a rope_theta above 1",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2, "beta_fast": -1}},
            "beta_fast must be a number of at least 0",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "for each kind of layer"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: factor must be"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": 3}, "rope_parameters must be an object"),
        ({"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2}}, "'su'"),
        ({"rope_scaling": {"type": "su", "factor": 2}}, "rope_scaling: rope_type 'su'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0"),
    ],
)
def test_wrong_config(hf: Path, change: dict[str, Any], expected: str) -> None:
    edit_json(hf / "config.json", change)
    assert any(expected in line for line in problems(hf)), problems(hf)


def test_the_older_form_of_config(hf: Path) -> None:
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    older = {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": scaling}
    edit_json(hf / "config.json", older | {"pretraining_tp": 2, "sliding_window": None})
    config = open_model(str(hf)).config
    assert config == replace(TINY, rope_theta=500000.0, rope_scaling=LLAMA31_SCALING)


def test_all_problems_come_in_one_go(hf: Path) -> None:
    edit_json(hf / "config.json", {"hidden_act": "gelu", "sliding_window": 1, "vocab_size": -1})
    edit_safetensors(hf / "model.safetensors", lambda tensors: tensors.pop(HF_WQ))
    text = "\n".join(problems(hf))
    for part in ("hidden_act", "sliding_window", "vocab_size", f"missing tensor {HF_WQ}"):
        assert part in text


def test_fields_that_are_not_known_are_named(hf: Path, meta: Path, capsys: Any) -> None:
    """One line for a file, whatever it holds of no effect."""
    harmless = {"pad_token_id": -1, "torch_dtype": "float16", "use_cache": False, "max_length": 20}
    edit_json(hf / "config.json", harmless | {"attention_dropout": 0.0, "pruned_heads": {}})
    edit_json(meta / "params.json", {"max_batch_size": 4})
    open_model(str(hf)), open_model(str(meta))
    assert capsys.readouterr().err == ""
    edit_json(hf / "config.json", {"attention_dropout": 0.1, "neft_alpha": 5, "pad_token_id": 96})
    edit_json(meta / "params.json", {"rope_high_freq_factor": 4.0})
    open_model(str(hf)), open_model(str(meta))
    assert capsys.readouterr().err.splitlines() == [
        f"{hf / 'config.json'}: 2 fields not known here: attention_dropout = 0.1, neft_alpha = 5",
        f"{meta / 'params.json'}: 1 field not known here: rope_high_freq_factor = 4.0",
    ]


def test_a_tie_that_nothing_says(tmp_path: Path) -> None:
    write_huggingface(tmp_path, tied(TINY))
    edit_json(tmp_path / "config.json", {"tie_word_embeddings": None})
    assert "missing tensor lm_head.weight" in only(tmp_path)
    assert "set it to true there" in only(tmp_path)


# --- tensors -------------------------------------------------------------------------------------


def test_wrong_tensors_of_safetensors(hf: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
        tensors["score.weight"] = torch.zeros(1)
        del tensors[HF_WQ]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # harmless

    edit_safetensors(hf / "model.safetensors", change)
    assert problems(hf) == [
        f"{hf}: unexpected tensor score.weight",
        f"{hf}: missing tensor {HF_WQ}",
        f"{hf}: wrong shape: model.layers.0.mlp.up_proj.weight has shape [3, 4], "
        "expected [192, 64]",
        f"{hf}: wrong type: model.norm.weight is I32, expected floating point",
    ]


def test_wrong_tensors_of_shards(meta: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["norm.weight"] = tensors["norm.weight"].to(torch.int8)
        tensors["adapter.weight"] = torch.zeros(1)
        del tensors["layers.1.attention.wo.weight"]

    for index in range(2):
        edit_shard(meta / f"consolidated.{index:02}.pth", change)
    assert only(meta) == f"{meta}: unexpected tensor adapter.weight"
    for index in range(2):
        edit_shard(
            meta / f"consolidated.{index:02}.pth", lambda tensors: tensors.pop("adapter.weight")
        )
    assert problems(meta) == [
        f"{meta}: missing tensor layers.1.attention.wo.weight",
        f"{meta}: wrong type: norm.weight is torch.int8, expected floating point",
    ]


@pytest.mark.parametrize("shape", [(), (64,), (0, 64), (3, 4, 5)])
@pytest.mark.parametrize(
    "name",
    [
        WQ,
        "tok_embeddings.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.0.attention.wo.weight",
    ],
)
def test_odd_shapes_in_shards(meta: Path, name: str, shape: tuple[int, ...]) -> None:
    for index in range(2):
        edit_shard(
            meta / f"consolidated.{index:02}.pth",
            lambda tensors: tensors.update({name: torch.zeros(shape)}),
        )
    assert name in "\n".join(problems(meta)) or "w1 has" in "\n".join(problems(meta))


def test_many_missing_tensors_are_counted(hf: Path) -> None:
    edit_safetensors(
        hf / "model.safetensors",
        lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.0." in n],
    )
    found = problems(hf)
    assert len(found) == 6 and found[-1].endswith("missing tensor (and 4 more)")


# --- shards --------------------------------------------------------------------------------------


def test_missing_and_extra_shards(tmp_path: Path) -> None:
    write_meta(tmp_path, TINY, random_state(TINY), 4)
    middle = tmp_path / "consolidated.01.pth"
    middle.rename(tmp_path / "kept")
    assert only(tmp_path).startswith(f"{middle}: no such file")
    (tmp_path / "kept").rename(middle)
    last = tmp_path / "consolidated.03.pth"
    last.rename(tmp_path / "consolidated.04.pth")
    assert only(tmp_path).startswith(f"{last}: no such file")
    (tmp_path / "consolidated.04.pth").unlink()
    assert "cut into 4 shards, found 3: a shard is missing" in only(tmp_path)
    for index in (3, 4):
        data = (tmp_path / SHARD).read_bytes()
        (tmp_path / f"consolidated.{index:02}.pth").write_bytes(data)
    assert "cut into 4 shards, found 5" in only(tmp_path)


def test_a_shard_of_another_model(meta: Path) -> None:
    path = meta / "consolidated.01.pth"
    edit_shard(path, lambda tensors: tensors.update({WQ: tensors[WQ].half()}))
    assert only(meta).startswith(f"{path}: differs from {SHARD} in {WQ}, [32, 64] torch.float16")


# --- the index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", "..", 3, None],
)
def test_an_index_may_only_name_files_beside_it(hf_parts: Path, name: object) -> None:
    path = hf_parts / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][HF_WQ] = name
    path.write_text(json.dumps(index))
    assert only(hf_parts).startswith(f"{path}: not the name of a .safetensors file here:")


@pytest.mark.parametrize("value", [None, [], {}, "x"])
def test_an_index_without_a_map(hf_parts: Path, value: object) -> None:
    path = hf_parts / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": value}))
    assert "weight_map must be an object" in only(hf_parts)


def test_an_index_that_disagrees_with_its_files(hf_parts: Path) -> None:
    path = hf_parts / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    held_by = index["weight_map"].pop("model.norm.weight")
    index["weight_map"]["model.layers.0.extra.weight"] = held_by
    path.write_text(json.dumps(index))
    assert problems(hf_parts) == [
        f"{path}: does not list model.norm.weight of {held_by}",
        f"{path}: lists a tensor that its file does not hold: model.layers.0.extra.weight",
        f"{hf_parts}: missing tensor model.norm.weight",
    ]
    (hf_parts / held_by).unlink()
    assert only(hf_parts).startswith(f"{hf_parts / held_by}: does not exist")


# --- ties ----------------------------------------------------------------------------------------


def test_a_tied_model_may_hold_its_matrix_twice(tmp_path: Path) -> None:
    state = write_huggingface(tmp_path, tied(TINY))
    path = tmp_path / "model.safetensors"
    copy = state["tok_embeddings.weight"].clone()
    edit_safetensors(path, lambda tensors: tensors.update({"lm_head.weight": copy}))
    source = open_model(str(tmp_path))
    assert source.config.tied_embedding and "output.weight" not in source.reader.names()
    copy[-1, -1] += 1
    edit_safetensors(path, lambda tensors: tensors.update({"lm_head.weight": copy}))
    assert "lm_head.weight differs" in only(tmp_path)


def test_meta_matrices_are_tied_only_if_equal_to_the_last_bit(tmp_path: Path) -> None:
    write_meta(tmp_path, tied(TINY), random_state(tied(TINY)), 2, embedding_dim=1)
    assert open_model(str(tmp_path)).config.tied_embedding
    edit_shard(
        tmp_path / "consolidated.01.pth",
        lambda tensors: tensors["output.weight"][-1, -1].add_(1e-3),
    )
    assert not open_model(str(tmp_path)).config.tied_embedding
