"""Sizes from Meta's `params.json`, and written as it.

It has no field for the positions: Meta's own code is told them by its caller, and fails where
`params.json` gives `max_seq_len` too. Where they are not those of a release they are in a file of
this project's own beside it, `positions.json`, which Meta's code does not look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llama.model.config import ModelConfig
from llama.model.presets import PRESETS
from llama.model.scaling import Llama3Scaling
from llama.weights.fields import Fields, read_json_object

POSITIONS = "positions.json"
_MAX_SEQ_LEN = "max_seq_len"
_OTHER_ARITHMETIC = (
    "moe",
    "moe_args",
    "sliding_window",
    "quantization_args",
    "lora_args",
    "vision_chunk_size",
    "vision_num_layers",
    "use_qk_norm",
    "nope_layer_interval",
    "attention_chunk_size",
)
"""Fields of releases that this model cannot reproduce."""
_MULTIPLE = 256
"""What the width of the feed-forward is a multiple of, where nothing says."""
_USUAL_POSITIONS, _USUAL_FACTOR, _HIGH_FREQUENCY = 2048, 8.0, 4.0
"""Of a release that is not known: its positions; of Llama 3.1's scaling, two of its factors."""
_HARMLESS = ("max_batch_size", "model_parallel_size")
"""Fields that change nothing here."""


def read_params(path: Path) -> tuple[Fields, ModelConfig]:
    """The fields of `params.json` and the sizes they give, and `positions.json` beside it gives.
    `vocab_size` is 0 where the file leaves it to the tokenizer, `max_seq_len` where nothing says;
    biases and tying show only in the tensors. Problems are in the fields."""
    fields = Fields(read_json_object(path), str(path))
    dim, n_heads = fields.integer("dim"), fields.integer("n_heads")
    eps = fields.number("norm_eps", 1e-5)
    vocab_size = 0
    if fields.given("vocab_size") not in (None, -1):
        vocab_size = fields.integer("vocab_size")
    if dim % n_heads and not fields.problems:
        fields.problems.append(f"{path}: dim {dim} is not a multiple of n_heads {n_heads}")
    if fields.integer("head_dim", dim // n_heads) != dim // n_heads:
        fields.problems.append(f"{path}: head_dim must be dim / n_heads = {dim // n_heads}")
    config = ModelConfig(
        dim=dim,
        n_layers=fields.integer("n_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("n_kv_heads", n_heads),
        head_dim=dim // n_heads,
        ffn_dim=_ffn_dim(dim, fields),
        vocab_size=vocab_size,
        norm_eps=eps,
        rope_theta=fields.number("rope_theta", 10000.0),
    )
    for key in _OTHER_ARITHMETIC:
        fields.refuse(key)
    return fields, replace(config, max_seq_len=_max_seq_len(fields, path.with_name(POSITIONS)))


def _max_seq_len(fields: Fields, beside: Path) -> int:
    """0 where nothing says."""
    if beside.exists():
        own = Fields(read_json_object(beside), str(beside))
        positions = own.integer(_MAX_SEQ_LEN)
        fields.problems += own.problems
        return positions
    return fields.integer(_MAX_SEQ_LEN, 0)


def _ffn_dim(dim: int, fields: Fields) -> int:
    """Meta's rule: two thirds of 4 dim, times a factor, rounded up to a multiple."""
    width = _plain_width(dim)
    if fields.given("ffn_dim_multiplier") is not None:
        width = int(fields.number("ffn_dim_multiplier") * width)
    multiple = fields.integer("multiple_of", _MULTIPLE)
    return -(-width // multiple) * multiple


def _plain_width(dim: int) -> int:
    return int(2 * 4 * dim / 3)


def complete(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Add what `params.json` does not say outright: the context length, and how far Llama 3.1's
    scaling stretches. Both follow from the release, which is known by its sizes."""
    release = _release(fields, config)
    max_seq_len = config.max_seq_len or _positions_of(release)
    scaling = None
    if fields.flag("use_scaled_rope"):
        known = release.rope_scaling if release else None
        usual = known.factor if isinstance(known, Llama3Scaling) else _USUAL_FACTOR
        scaling = Llama3Scaling(
            factor=fields.number("rope_scaling_factor", usual),
            low_freq_factor=1.0,
            high_freq_factor=fields.number("rope_high_freq_factor", _HIGH_FREQUENCY),
            original_max_position=8192,
        )
    if not fields.problems:
        fields.note_unread(*_HARMLESS)
    return replace(config, max_seq_len=max_seq_len, rope_scaling=scaling)


def params_document(config: ModelConfig) -> dict[str, object]:
    """`params.json` of these sizes, from which they are read again."""
    plain = _plain_width(config.dim)
    document: dict[str, object] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    if -(-plain // _MULTIPLE) * _MULTIPLE == config.ffn_dim:
        document["multiple_of"] = _MULTIPLE
    else:  # half a unit more than the width, so that rounding down gives it
        document |= {"ffn_dim_multiplier": (config.ffn_dim + 0.5) / plain, "multiple_of": 1}
    if isinstance(config.rope_scaling, Llama3Scaling):
        document["use_scaled_rope"] = True
    release = _release(Fields(document, "params.json"), replace(config, rope_scaling=None))
    scaling, known = config.rope_scaling, release.rope_scaling if release else None
    if isinstance(scaling, Llama3Scaling):
        usual = known.factor if isinstance(known, Llama3Scaling) else _USUAL_FACTOR
        if scaling.factor != usual:
            document["rope_scaling_factor"] = scaling.factor
        if scaling.high_freq_factor != _HIGH_FREQUENCY:
            document["rope_high_freq_factor"] = scaling.high_freq_factor
    return document


def positions_document(config: ModelConfig) -> dict[str, object] | None:
    """`positions.json` of these sizes; None where `params.json` tells them by its release."""
    fields = Fields(params_document(config), "params.json")
    release = _release(fields, replace(config, rope_scaling=None))
    if config.max_seq_len == _positions_of(release):
        return None
    return {_MAX_SEQ_LEN: config.max_seq_len}


def _positions_of(release: ModelConfig | None) -> int:
    return release.max_seq_len if release else _USUAL_POSITIONS


def _release(fields: Fields, config: ModelConfig) -> ModelConfig | None:
    """The preset that has these sizes, if any."""
    scaled = fields.flag("use_scaled_rope")
    for preset in PRESETS.values():
        alike = replace(
            preset,
            max_seq_len=config.max_seq_len,
            rope_scaling=None,
            tied_embedding=config.tied_embedding,
        )
        if alike == config and (preset.rope_scaling is not None) == scaled:
            return preset
    return None
