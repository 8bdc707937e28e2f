"""Sizes from Hugging Face's `config.json`, as written by transformers 4 and 5; and written so that
both read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama.model.config import ModelConfig
from llama.weights.fields import Fields, read_json_object, shorten
from llama.weights.rope_fields import read_rope, written_scaling

CONFIG = "config.json"
_WINDOW = "sliding_window"


@dataclass(frozen=True)
class Kind:
    """A `model_type` of LLaMA's arithmetic: how transformers reads its config.json."""

    architecture: str
    missing: Mapping[str, int | float]
    """What a field that is not there stands for; one that is null means what it means everywhere,
    such as one key/value head for each query head."""
    never: tuple[str, ...] = ()
    """Fields of another kind that transformers passes over here, so that none may be set."""


KINDS = {
    "llama": Kind(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    ),
    "mistral": Kind(
        "MistralForCausalLM",
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            _WINDOW: 4096,
        },
        never=("attention_bias", "mlp_bias"),
    ),
}
"""By `model_type`. Relatives that share LLaMA's tensor names and are not here differ in their
arithmetic."""
_OWN = "llama"
"""What a model is of that came in no config.json."""

_OTHER_ARITHMETIC = {
    "quantization_config": (),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_interleaved": (),
    "rope_ratio": (1,),
    "use_sliding_window": (),
    "attention_chunk_size": (),
    "no_rope_layers": (),
    "no_rope_layer_interval": (),
    "num_local_experts": (1,),
    "num_experts": (1,),
    "clip_qkv": (),
    "qk_norm": (),
    "use_qk_norm": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "parallel_attn": (),
    "use_parallel_residual": (),
    "pruned_heads": (),
    "per_layer_config": (),
    "is_encoder_decoder": (),
    "add_cross_attention": (),
}
"""Fields that, set, mean another computation than this model's, with the values that do not."""

_HARMLESS = (
    # who wrote it, of what
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "dtype"),
    *("torch_dtype", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix"),
    *("unsloth_fixed", "unsloth_version", "transformers.js_config", "model_max_length"),
    *("is_llama_config",),  # of SmolLM2
    # the tokenizer and its own files say these; a padding id is in no example
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    # how the same result is come by: `pretraining_tp` says how matrices were once multiplied
    *("use_cache", "cache_implementation", "pretraining_tp", "chunk_size_feed_forward"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("_experts_implementation", "_flash_attn_2_enabled", "use_flash_attention"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "return_dict", "output_attentions"),
    *("output_hidden_states", "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size"),
    # first values, which the weights have replaced; heads of other tasks
    *("initializer_range", "id2label", "label2id", "num_labels", "problem_type"),
    # the positions a second time, as the first LLaMA folders have them
    *("max_sequence_length",),
)
"""Fields that change nothing here."""

_GENERATION = (
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
)
"""What transformers itself drops from a config: generation_config.json is the place of these."""


def read_config(path: Path) -> tuple[ModelConfig, list[str]]:
    """The sizes in `config.json`, and what is wrong with it. Raises UserError if it is not JSON."""
    document = read_json_object(path)
    name = document.get("model_type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    fields = Fields({**(kind or KINDS["llama"]).missing, **document}, str(path))
    _check_kind(fields, kind)
    _check_window(fields, _WINDOW in document)
    dim, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.given("head_dim") is None and dim % n_heads:
        fields.problems.append(
            f"{path}: hidden_size {dim} is not a multiple of num_attention_heads {n_heads}"
        )
    positions = fields.integer("max_position_embeddings")
    theta, scaling = read_rope(fields, positions)
    config = ModelConfig(
        dim=dim,
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", n_heads),
        head_dim=fields.integer("head_dim", max(1, dim // n_heads)),
        ffn_dim=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        max_seq_len=positions,
        tied_embedding=fields.flag("tie_word_embeddings"),
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )
    if not fields.problems:
        if fields.values.get("attention_dropout") == 0:  # another would be felt in training
            fields.know("attention_dropout")
        fields.note_unread(*_HARMLESS, *_GENERATION)
    return config, fields.problems


def _check_kind(fields: Fields, kind: Kind | None) -> None:
    """Only LLaMA's arithmetic."""
    name, kinds = fields.given("model_type"), fields.given("architectures")
    if kind is None:
        known = " or ".join(f"'{name}'" for name in KINDS)
        found = "no model_type" if name is None else f"model_type {shorten(name)}"
        fields.problems.append(f"{fields.where}: expected model_type {known}, found {found}")
    elif kinds is not None and kinds != [kind.architecture]:
        fields.problems.append(
            f"{fields.where}: expected architectures ['{kind.architecture}'], "
            f"found {shorten(kinds)}"
        )
    for key in kind.never if kind else ():
        fields.refuse(key)
    activation = fields.given("hidden_act")
    if activation not in (None, "silu"):
        fields.problems.append(
            f"{fields.where}: hidden_act = {shorten(activation)} is not supported, only 'silu'"
        )
    layers = fields.given("layer_types")
    if not isinstance(layers, list) or set(map(str, layers)) - {"full_attention"}:
        fields.refuse("layer_types")
    for key, harmless in _OTHER_ARITHMETIC.items():
        fields.refuse(key, harmless)


def _check_window(fields: Fields, said: bool) -> None:
    """Refuse a window: without one, all of a text is attended to, however long."""
    window = fields.given(_WINDOW)
    if window in (None, False, 0):
        return
    found = f"= {shorten(window)}"
    if not said:
        found = f"is missing, which in this model_type means {window} to transformers, and"
    fields.problems.append(
        f"{fields.where}: {_WINDOW} {found} is not supported: where the model was trained without, "
        f"set it to null; for texts of at most {shorten(window)} tokens, which a window does not "
        f"change, set it to null and max_position_embeddings to {shorten(window)}"
    )


def config_document(config: ModelConfig, dtype: torch.dtype, beside: Path | None) -> dict[str, Any]:
    """`config.json` of a model of these sizes with weights in `dtype`: `beside`, the file of a
    model of the same sizes, where there is one, with what it says besides."""
    kind = str(dtype).removeprefix("torch.")
    if beside is not None:
        document = read_json_object(beside)
        document |= {key: kind for key in ("dtype", "torch_dtype") if key in document}
        if document.get("architectures") is None:  # by which alone vLLM finds the model's class
            document["architectures"] = [KINDS[str(document["model_type"])].architecture]
        return document if "dtype" in document else document | {"torch_dtype": kind}
    return {
        "architectures": [KINDS[_OWN].architecture],
        "model_type": _OWN,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": written_scaling(config.rope_scaling),
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tied_embedding,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "torch_dtype": kind,
    }
