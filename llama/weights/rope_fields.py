"""The rotary embedding that a file's fields describe: Hugging Face's `config.json`, and GGUF's
metadata. One table of kinds; each says which fields it takes, under transformers' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llama.model.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)
from llama.notes import note
from llama.weights.fields import Fields, named_values, shorten

DEFAULT_THETA = 10000.0


def _llama3(rope: Fields, positions: int) -> Llama3Scaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low and not rope.problems:
        rope.problems.append(f"{rope.where}: high_freq_factor must be above low_freq_factor")
    return Llama3Scaling(rope.number("factor"), low, high, _original(rope, positions))


def _yarn(rope: Fields, positions: int) -> YarnScaling:
    original = _original(rope, positions)
    # as transformers: a factor of null stands for the ratio of the lengths, one left out is missing
    ratio = positions / original if "factor" in rope.values else None
    factor = rope.number("factor", ratio)
    sharpening = yarn_attention_factor(factor)
    mscales = [rope.number(key, 0.0, zero=True) for key in ("mscale", "mscale_all_dim")]
    if all(mscales):
        over, under = (yarn_attention_factor(factor, mscale) for mscale in mscales)
        sharpening = over / under
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=rope.number("attention_factor", sharpening),
        beta_fast=rope.number("beta_fast", 0.0, zero=True) or YarnScaling.beta_fast,
        beta_slow=rope.number("beta_slow", 0.0, zero=True) or YarnScaling.beta_slow,
        truncate=rope.flag("truncate", True),
    )


def _original(rope: Fields, positions: int) -> int:
    return rope.integer("original_max_position_embeddings", positions)


KINDS: dict[str, Callable[[Fields, int], RopeScaling | None]] = {
    "default": lambda rope, positions: None,
    "linear": lambda rope, positions: LinearScaling(rope.number("factor")),
    "dynamic": lambda rope, positions: DynamicScaling(rope.number("factor")),
    "llama3": _llama3,
    "yarn": _yarn,
}
"""By `rope_type`: from its fields, and from the model's positions, its scaling."""


def scaling_of(rope: Fields, positions: int) -> RopeScaling | None:
    """The scaling that `rope` describes; what is wrong with it is in its problems."""
    kind = rope.given("rope_type") or rope.given("type") or "default"
    rope.know("rope_type", "type")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        rope.problems.append(
            f"{rope.where}: rope_type {shorten(kind)} is not supported; known are {known}"
        )
        return None
    return KINDS[kind](rope, positions)


def read_rope(fields: Fields, positions: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling of `config.json`, as transformers 5 takes them: `rope_scaling` goes
    before `rope_parameters`, and a base inside of either before `rope_theta`. Where two of them
    disagree, one line says which is taken. What is wrong is added to the problems of `fields`."""
    outer = fields.number("rope_theta", DEFAULT_THETA)
    original = fields.given("original_max_position_embeddings")  # goes before the one inside
    read: dict[str, tuple[float, RopeScaling | None]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = fields.given(key)
        if isinstance(value, dict) and value:
            own = {} if original is None else {"original_max_position_embeddings": original}
            rope = Fields({**value, **own}, f"{fields.where}: {key}")
            rope.know(*own)
            theta = rope.number("rope_theta", outer)
            scaling = scaling_of(rope, positions)
            if not read:  # the form that is not taken need not be right
                _check(rope, scaling, theta)
                fields.problems += rope.problems
            read[key] = theta, scaling
        elif value is not None and not isinstance(value, dict):
            expected = f"{key} must be an object, found {shorten(value)}"
            fields.problems.append(f"{fields.where}: {expected}")
    if not read:
        return outer, None
    _note_disagreement(fields, read, outer)
    return next(iter(read.values()))


def _check(rope: Fields, scaling: RopeScaling | None, theta: float) -> None:
    """Note what a scaling leaves unread, as transformers does; refuse what would be another
    rotation."""
    rope.refuse("partial_rotary_factor", harmless=(1,))
    if isinstance(scaling, YarnScaling) and theta <= 1:
        rope.problems.append(f"{rope.where}: yarn needs a rope_theta above 1, found {theta:g}")
    unread = rope.unread()
    nested = [key for key in unread if isinstance(rope.values[key], dict)]
    if nested:
        rope.problems.append(f"{rope.where}: {nested[0]}: one for each kind of layer is not read")
    elif unread and not rope.problems:
        kind = shorten(rope.given("rope_type") or rope.given("type") or "default")
        note(f"{rope.where}: rope_type {kind} does not use {named_values(rope.values, unread)}")


def _note_disagreement(
    fields: Fields, read: dict[str, tuple[float, RopeScaling | None]], outer: float
) -> None:
    taken, *rest = read
    theta = read[taken][0]
    if rest and read[rest[0]] != read[taken]:
        note(
            f"{fields.where}: rope_scaling and rope_parameters disagree: rope_scaling is taken, as "
            "transformers does; remove the one that is wrong"
        )
    if fields.given("rope_theta") is not None and outer != theta:
        note(
            f"{fields.where}: rope_theta {outer:g} and the {theta:g} of {taken} disagree: the "
            "latter is taken, as transformers does"
        )


_LENGTHS: dict[str, str] = {"original_max_position": "original_max_position_embeddings"}
"""Fields that transformers calls otherwise."""
_WRITTEN: dict[type[Any], tuple[str, tuple[str, ...]]] = {
    LinearScaling: ("linear", ("factor",)),
    DynamicScaling: ("dynamic", ("factor",)),
    Llama3Scaling: (
        "llama3",
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position"),
    ),
    YarnScaling: (
        "yarn",
        (
            *("factor", "original_max_position", "attention_factor"),
            *("beta_fast", "beta_slow", "truncate"),
        ),
    ),
}


def written_scaling(scaling: RopeScaling | None) -> dict[str, object] | None:
    """`rope_scaling` of `config.json`, from which `scaling_of` reads `scaling` again."""
    if scaling is None:
        return None
    kind, fields = _WRITTEN[type(scaling)]
    values: dict[str, object] = {
        _LENGTHS.get(field, field): getattr(scaling, field) for field in fields
    }
    return {"rope_type": kind, **values}


_GGUF_NAMES = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
"""llama.cpp's fields that mean what one of transformers' does."""


def read_gguf_scaling(fields: Fields, positions: int) -> RopeScaling | None:
    """The scaling of a GGUF file's `rope.scaling.*`, by llama.cpp's rules (`load_hparams` of
    `llama_model`, `rope_yarn` of ggml): `attn_factor` multiplies what follows from the factor."""
    values = {theirs: fields.given(key) for key, theirs in _GGUF_NAMES.items()}
    fields.know(*_GGUF_NAMES, "rope.scaling.finetuned", "rope.scale_linear")
    values = {key: value for key, value in values.items() if value is not None}
    older = fields.given("rope.scale_linear")  # of before there was a type: linear
    if older not in (None, 1):
        values = {"factor": older, "rope_type": "linear"} | values
    if values.get("rope_type") == "none":
        return None
    if values.get("factor") not in (None, 1):
        values.setdefault("rope_type", "linear")  # what llama.cpp takes where no type is said
    values.setdefault("factor", 1)
    rope = Fields(values, f"{fields.where}: {fields.prefix}rope.scaling")
    scaling = scaling_of(rope, positions)
    fields.problems += rope.problems
    fields.refuse("rope.scaling.yarn_ext_factor", harmless=(1, -1))
    fields.refuse("rope.scaling.yarn_log_multiplier")
    fields.refuse("rope.scaling.alpha")
    extra = 1.0
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        extra *= fields.number(key, 1.0)
    if extra == 1.0:
        return scaling
    if not isinstance(scaling, YarnScaling):
        fields.refuse("rope.scaling.attn_factor", harmless=(1,))
        fields.refuse("rope.scaling.yarn_attn_factor", harmless=(1,))
        return scaling
    return replace(scaling, attention_factor=scaling.attention_factor * extra)
