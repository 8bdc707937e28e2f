"""Sizes from Hugging Face's `config.json`, as written by transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path

from llama.model.config import ModelConfig, RopeScaling
from llama.weights.fields import Fields, read_json_object, shorten

_OTHER_ARITHMETIC = (
    "sliding_window",
    "quantization_config",
    "num_local_experts",
    "clip_qkv",
    "rope_interleaved",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Fields that, set, mean another computation than this model's. `pretraining_tp` only says how the
matrices were once multiplied, and is left alone."""


def read_config(path: Path) -> tuple[ModelConfig, list[str]]:
    """The sizes in `config.json`, and what is wrong with it. Raises UserError if it is not JSON."""
    fields = Fields(read_json_object(path), str(path))
    _check_kind(fields)
    dim, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.given("head_dim") is None and dim % n_heads:
        fields.problems.append(
            f"{path}: hidden_size {dim} is not a multiple of num_attention_heads {n_heads}"
        )
    theta, scaling, rope_problems = _rope(fields)
    config = ModelConfig(
        dim=dim,
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", n_heads),
        head_dim=fields.integer("head_dim", max(1, dim // n_heads)),
        ffn_dim=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_seq_len=fields.integer("max_position_embeddings", 2048),
        tied_embedding=fields.flag("tie_word_embeddings"),
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )
    return config, fields.problems + rope_problems


def _check_kind(fields: Fields) -> None:
    """Only LLaMA itself: relatives that share its tensor names differ in their arithmetic."""
    kind = fields.given("model_type")
    if kind != "llama":
        found = "no model_type" if kind is None else f"model_type {shorten(kind)}"
        fields.problems.append(f"{fields.where}: expected model_type 'llama', found {found}")
    kinds = fields.given("architectures")
    if kinds is not None and kinds != ["LlamaForCausalLM"]:
        fields.problems.append(
            f"{fields.where}: expected architectures ['LlamaForCausalLM'], found {shorten(kinds)}"
        )
    activation = fields.given("hidden_act")
    if activation not in (None, "silu"):
        fields.problems.append(
            f"{fields.where}: hidden_act = {shorten(activation)} is not supported, only 'silu'"
        )
    fields.refuse("partial_rotary_factor", harmless=(1,))
    for key in _OTHER_ARITHMETIC:
        fields.refuse(key)


def _rope(fields: Fields) -> tuple[float, RopeScaling | None, list[str]]:
    """Rotary base, scaling and problems: from `rope_parameters` (transformers 5), which holds both,
    or from `rope_theta` and `rope_scaling` beside it."""
    key = "rope_parameters" if fields.given("rope_parameters") is not None else "rope_scaling"
    value = fields.given(key)
    if value is None:
        return fields.number("rope_theta", 10000.0), None, []
    if not isinstance(value, dict):
        problem = f"{fields.where}: {key} must be an object, found {shorten(value)}"
        return 1.0, None, [problem]
    rope = Fields(value, f"{fields.where}: {key}")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    rope.refuse("partial_rotary_factor", harmless=(1,))
    kind = rope.given("rope_type") or rope.given("type") or "default"
    if kind == "default":
        return theta, None, rope.problems
    if kind != "llama3":
        problem = f"{rope.where}: rope_type {shorten(kind)} is not supported, only 'llama3'"
        return theta, None, [*rope.problems, problem]
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position=rope.integer("original_max_position_embeddings"),
    )
    return theta, scaling, rope.problems
