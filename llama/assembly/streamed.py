"""A model's logits with no more of it in memory than some rows of one weight, to compare what
readers give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import nn

from llama.adapters.attach import adapters, attach_each, set_values
from llama.base.dense import Dense
from llama.errors import UserError
from llama.kernels.elementwise import rms_norm
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.rope import Rotation, attention_factor, inverse_frequencies
from llama.model.transformer import TransformerBlock
from llama.parallel.layers import ParallelLinear
from llama.parallel.mesh import SINGLE
from llama.settings import LoRAOptions
from llama.weights.load import is_finite, not_finite
from llama.weights.reader import WeightReader, by_rows


class _InFile(Dense):
    """A weight that stays where it is stored: each product reads it, some rows at a time, and takes
    them in float32. Its parameter has no memory, and says in `stored` which weight of which reader
    it is. UserError for one that is not finite."""

    def times(
        self, x_TI: torch.Tensor, taken: None = None, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        y_TO = torch.cat([x_TI @ rows.t() for rows in self._by_rows()], dim=1, out=into)
        return _require_finite(y_TO, *self.parameter.stored)  # type: ignore[attr-defined]

    def dense(self) -> torch.Tensor:
        return torch.cat(list(self._by_rows()))

    def _by_rows(self) -> Iterator[torch.Tensor]:
        reader, name = self.parameter.stored  # type: ignore[attr-defined]
        return (rows.float() for _, rows in by_rows(reader, name, self.parameter.shape))


@torch.no_grad()
def streamed_logits(
    reader: WeightReader,
    ids: Sequence[int],
    layers: Mapping[str, LoRAOptions],
    state: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """`[T, V]` float32, computed on the CPU, of `T` tokens as one document.

    The adapter `layers` and `state`, of `llama.assembly.model.read_adapter` or empty, is a path
    beside each layer, as when it trained: nothing is merged. UserError for a weight that is not
    finite."""
    x_TD = _hidden(reader, [ids], layers, state)
    return torch.cat([x_TD @ part.t() for _, part in _head(reader)], dim=1)


@torch.no_grad()
def shortfalls(
    reader: WeightReader,
    texts: Sequence[Sequence[int]],
    layers: Mapping[str, LoRAOptions],
    state: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """Of each text `[its tokens - 1]`: by how much each token but the first is less likely than the
    likeliest one in its place, as the difference of their logits. 0 where it is that one."""
    x_TD = _hidden(reader, texts, layers, state)
    ends = list(accumulate(len(text) for text in texts))
    follows = torch.tensor([id_ for text in texts for id_ in text]).roll(-1)
    largest = torch.full((len(x_TD),), -math.inf)
    taken = torch.empty(len(x_TD))
    for start, part in _head(reader):
        logits = x_TD @ part.t()
        largest = torch.maximum(largest, logits.amax(dim=1))
        here = ((follows >= start) & (follows < start + len(part))).nonzero().flatten()
        taken[here] = logits[here, follows[here] - start]
    short = largest - taken
    return [short[end - len(text) : end - 1] for text, end in zip(texts, ends, strict=True)]


def _hidden(
    reader: WeightReader,
    texts: Sequence[Sequence[int]],
    layers: Mapping[str, LoRAOptions],
    state: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """`[T, D]`: what the output matrix is given of `T` tokens, each text a document."""
    config = reader.config
    rows = [reader.read("tok_embeddings.weight", 0, id_, 1) for text in texts for id_ in text]
    x_TD = _require_finite(torch.cat(rows).float(), reader, "tok_embeddings.weight")
    boundaries = [0, *accumulate(len(text) for text in texts)]
    rotation = Rotation(
        inverse_frequencies(config),
        torch.cat([torch.arange(len(text)) for text in texts]),
        torch.float32,
        attention_factor(config),
    )
    documents = Documents(boundaries)
    for layer in range(config.n_layers):
        x_TD = _block(reader, layer, layers, state)(x_TD, rotation, documents, None)
    return rms_norm(x_TD, _whole(reader, "norm.weight"), config.norm_eps)


def _head(reader: WeightReader) -> Iterator[tuple[int, torch.Tensor]]:
    """The output matrix in float32, some rows at a time: the number of the first, and they."""
    config = reader.config
    name = "tok_embeddings.weight" if config.tied_embedding else "output.weight"
    for start, rows in by_rows(reader, name, (config.vocab_size, config.dim)):
        yield start, _require_finite(rows.float(), reader, name)


def _whole(reader: WeightReader, name: str) -> torch.Tensor:
    """A small weight, in float32."""
    return _require_finite(reader.read(name).float(), reader, name)


def _require_finite(values: torch.Tensor, reader: WeightReader, name: str) -> torch.Tensor:
    """`values`, which are those of the weight `name`, or products with it. UserError where they are
    not finite because it is not: what comes later may be, since attention on CPUs loses a NaN."""
    if not is_finite(values) and not is_finite(weight := reader.read(name)):
        raise UserError(f"{reader.place(name)}: {not_finite(name, weight, torch.float32)}")
    return values


def _block(
    reader: WeightReader,
    layer: int,
    layers: Mapping[str, LoRAOptions],
    state: Mapping[str, torch.Tensor],
) -> TransformerBlock:
    prefix = f"layers.{layer}."
    with torch.device("meta"):
        block = TransformerBlock(0, reader.config, SINGLE, Kept.ALL)
    for name, old in list(block.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        module = block.get_submodule(owner)
        if isinstance(module, ParallelLinear) and attribute == "weight":
            module.kind = _InFile
            old.stored = reader, prefix + name  # type: ignore[attr-defined]
        else:
            module.register_parameter(attribute, nn.Parameter(_whole(reader, prefix + name)))
    of_block = {
        name.removeprefix(prefix): replace(options, dropout=0.0)
        for name, options in layers.items()
        if name.startswith(prefix)
    }
    attach_each(block, of_block)
    for _, adapter in adapters(block):
        adapter.materialise(torch.device("cpu"))
    tensors = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    set_values(block, tensors)
    return block.eval()
