"""The tensors that a model of given sizes has, and what is wrong with those that a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llama.model.config import LINEARS, PART_OF, ModelConfig
from llama.weights.names import layer_index

_SHOWN = 5


@dataclass(frozen=True)
class TensorHeader:
    """What a file declares of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    usable: bool
    """Whether `dtype` is floating point, or blocks that can be dequantised to it."""


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Unsharded shape of every weight of the model, by native name; no `output` where tied."""
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, config.dim)}
    for layer in range(config.n_layers):
        for name in LINEARS:
            shape = config.linear_shape(name)
            shapes[f"layers.{layer}.{PART_OF[name]}.{name}.weight"] = shape
            if config.has_bias(name):
                shapes[f"layers.{layer}.{PART_OF[name]}.{name}.bias"] = shape[:1]
        shapes[f"layers.{layer}.attention_norm.weight"] = (config.dim,)
        shapes[f"layers.{layer}.ffn_norm.weight"] = (config.dim,)
    shapes["norm.weight"] = (config.dim,)
    if not config.tied_embedding:
        shapes["output.weight"] = (config.vocab_size, config.dim)
    return shapes


def size_problems(config: ModelConfig, where: str) -> list[str]:
    """What no LLaMA can be: heads that do not divide, a head that has no rotary pairs."""
    problems = []
    if config.n_heads % config.n_kv_heads:
        problems.append(
            f"{where}: {config.n_heads} heads cannot share {config.n_kv_heads} key/value heads "
            "evenly"
        )
    if config.head_dim % 2 or config.head_dim == 0:
        problems.append(f"{where}: the head dimension is {config.head_dim}, but must be even")
    return problems


def header_problems(
    config: ModelConfig,
    headers: dict[str, TensorHeader],
    where: str,
    file_name: Callable[[str], str] = str,
    sizes_known: bool = True,
) -> list[str]:
    """Missing, extra, misshapen and mistyped tensors of `headers` (by native name) against
    `config`. `file_name` gives the name by which the file calls a tensor. Shapes are not judged by
    sizes that stand in for wrong ones."""
    layers = {index for name in headers if (index := layer_index(name)) is not None}
    held = max(layers, default=-1) + 1
    if held != config.n_layers:  # also keeps a config of a billion layers from being spelt out
        problem = f"{where}: the sizes say {config.n_layers} layers, the weights hold {held}"
        return [problem] if sizes_known else []
    shapes = expected_shapes(config)
    missing = [file_name(name) for name in shapes if name not in headers]
    extra = [file_name(name) for name in headers if name not in shapes]
    misshapen = [
        f"{file_name(name)} has shape {list(headers[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if sizes_known and name in headers and headers[name].shape != shape
    ]
    mistyped = [
        f"{file_name(name)} is {header.dtype}, expected floating point"
        for name, header in headers.items()
        if name in shapes and not header.usable
    ]
    return [
        *summarise(where, "missing tensor", missing),
        *summarise(where, "unexpected tensor", extra),
        *summarise(where, "wrong shape:", misshapen),
        *summarise(where, "wrong type:", mistyped),
    ]


def summarise(where: str, what: str, items: Iterable[str]) -> list[str]:
    """One line for each of the first few of `items`, and one that counts the rest."""
    items = list(items)
    lines = [f"{where}: {what} {item}" for item in items[:_SHOWN]]
    if len(items) > _SHOWN:
        lines.append(f"{where}: {what} (and {len(items) - _SHOWN} more)")
    return lines
