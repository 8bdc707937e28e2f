"""A model's logits with no more of it in memory than one block, to compare what readers give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from llama.adapters.attach import attach_each, set_values
from llama.kernels.elementwise import rms_norm
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.rope import Rotation, attention_factor, inverse_frequencies
from llama.model.transformer import TransformerBlock
from llama.parallel.mesh import SINGLE
from llama.settings import LoRAOptions
from llama.weights.load import load_weights
from llama.weights.reader import WeightReader

_ROWS = 4096
"""Of the output matrix, at a time."""


class _OfBlock:
    """The weights of one block, by their names within it."""

    def __init__(self, reader: WeightReader, layer: int) -> None:
        self._reader = reader
        self._prefix = f"layers.{layer}."
        self.config, self.files = reader.config, reader.files
        self.fingerprint, self.sampled_hash = reader.fingerprint, reader.sampled_hash

    def names(self) -> set[str]:
        return {name.removeprefix(self._prefix) for name in self._reader.names()}

    def place(self, name: str) -> str:
        return self._reader.place(self._prefix + name)

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        return self._reader.read(self._prefix + name, dim, start, length)


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
    x_TD = torch.cat(rows).float()
    boundaries = [0, *accumulate(len(text) for text in texts)]
    rotation = Rotation(
        inverse_frequencies(config),
        torch.cat([torch.arange(len(text)) for text in texts]),
        torch.float32,
        attention_factor(config),
    )
    documents = Documents(boundaries)
    for layer in range(config.n_layers):
        block = _block(reader, layer, layers, state)
        x_TD = block(x_TD, rotation, documents, None)
    return rms_norm(x_TD, reader.read("norm.weight").float(), config.norm_eps)


def _head(reader: WeightReader) -> Iterator[tuple[int, torch.Tensor]]:
    """The output matrix in float32, some rows at a time: the number of the first, and they."""
    config = reader.config
    name = "tok_embeddings.weight" if config.tied_embedding else "output.weight"
    for start in range(0, config.vocab_size, _ROWS):
        yield start, reader.read(name, 0, start, min(_ROWS, config.vocab_size - start)).float()


def _block(
    reader: WeightReader,
    layer: int,
    layers: Mapping[str, LoRAOptions],
    state: Mapping[str, torch.Tensor],
) -> TransformerBlock:
    with torch.device("meta"):
        block = TransformerBlock(0, reader.config, SINGLE, Kept.ALL)
    block.requires_grad_(False)
    load_weights(block, _OfBlock(reader, layer), torch.float32, torch.device("cpu"), 0, 1)
    prefix = f"layers.{layer}."
    of_block = {
        name.removeprefix(prefix): replace(options, dropout=0.0)
        for name, options in layers.items()
        if name.startswith(prefix)
    }
    attach_each(block, of_block)
    tensors = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    set_values(block, tensors)
    return block.eval()
