"""The type in which weights are written, and what of the base it is too narrow for."""

from __future__ import annotations

from functools import reduce

import torch

from llama.model.config import ModelConfig
from llama.settings import ExportOptions
from llama.weights.gguf import GGUFReader
from llama.weights.reader import WeightReader, by_rows
from llama.weights.shapes import expected_shapes


def written_type(options: ExportOptions, reader: WeightReader) -> torch.dtype:
    """Of the tensors that a writer is given: what is to be quantised is not rounded before. Without
    --dtype that of the layers, float16 where they are quantised."""
    if options.quantize is not None:
        return torch.float32
    if options.dtype is not None:
        return getattr(torch, options.dtype)
    return _stored_type(reader, "layers.0.attention.wq.weight") or torch.float16


def narrowed(reader: WeightReader, config: ModelConfig, dtype: torch.dtype) -> str | None:
    """What to say of the tensors that are stored in a wider type than `dtype` and hold numbers that
    it has not; None where there are none. Vectors of a GGUF file are float32 whatever the model's
    type was, and mostly hold nothing wider."""
    lost, kinds = [], set[torch.dtype]()
    for name, shape in expected_shapes(config).items():
        kind = _stored_type(reader, name)
        if kind is None or torch.promote_types(kind, dtype) == dtype:
            continue
        if any(
            not torch.equal(r.to(dtype).to(r.dtype), r) for _, r in by_rows(reader, name, shape)
        ):
            lost.append(name)
            kinds.add(kind)
    if not lost:
        return None
    stored = ", ".join(sorted(map(_named, kinds)))
    enough = _named(reduce(torch.promote_types, kinds, dtype))
    return (
        f"tensors that are stored as {stored} and rounded to {_named(dtype)}: {len(lost)}, the "
        f"first {lost[0]}; --dtype {enough} keeps them"
    )


def _stored_type(reader: WeightReader, name: str) -> torch.dtype | None:
    """The type in which the base has a weight, float64 as float32, the widest that is written; None
    where it is quantised."""
    if isinstance(reader, GGUFReader):
        return reader.stored_type(name)
    stored = reader.read(name, 0, 0, 1).dtype
    return torch.float32 if stored == torch.float64 else stored


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
