"""The LLaMA architecture on tokens of documents laid end to end.

Touvron et al., "LLaMA", 2023, section 2.2. Names of parameters are Meta's.
Shapes: T tokens of all documents, D dim, V vocabulary (`/p`: sharded), N supervised positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llama.kernels.elementwise import rms_norm, swiglu
from llama.kernels.products import compute_dtype
from llama.model.attention import Attention
from llama.model.config import ModelConfig
from llama.model.documents import Documents
from llama.model.kept import KEPT, Checkpointing, Kept
from llama.model.kv_cache import KVCache
from llama.model.loss import summed_cross_entropy
from llama.model.rope import Rotation, attention_factor, inverse_frequencies
from llama.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    each_of,
    gather_from_shards,
    linear,
    real_rows,
    vocabulary_rows,
)
from llama.parallel.mesh import SINGLE, TensorParallel


@dataclass(frozen=True)
class Supervision:
    """Which positions have a label: `index_N` into the T tokens, and the token each predicts."""

    index_N: torch.Tensor
    labels_N: torch.Tensor


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_TD, self.weight, self.eps)


class FeedForward(nn.Module):
    """`w2(silu(w1 x) * w3 x)`"""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.tp = tp
        self.w1 = ColumnParallelLinear(config.dim, config.ffn_dim, bias, tp)
        self.w2 = RowParallelLinear(config.ffn_dim, config.dim, bias, tp)
        self.w3 = ColumnParallelLinear(config.dim, config.ffn_dim, bias, tp)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.w2(swiglu(*each_of((self.w1, self.w3), x_TD, self.tp)))


def _recomputed(function: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
    """Call `function`, keeping only its arguments; the rest is computed again in the backward.
    Non-reentrant: the first block's input comes from a frozen embedding and needs no gradient."""
    return checkpoint(function, *args, use_reentrant=False)  # type: ignore[return-value]


class TransformerBlock(nn.Module):
    def __init__(self, layer: int, config: ModelConfig, tp: TensorParallel, kept: Kept) -> None:
        super().__init__()
        self.layer = layer
        self.kept = kept
        self.attention = Attention(config, tp)
        self.feed_forward = FeedForward(config, tp)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x_TD: torch.Tensor, rotation: Rotation, documents: Documents, cache: KVCache | None
    ) -> torch.Tensor:
        x_TD = x_TD + self.attention(
            self.attention_norm(x_TD), rotation, documents, cache, self.layer
        )
        if self.kept == Kept.FFN_INPUTS and torch.is_grad_enabled():
            return x_TD + _recomputed(self._ffn, x_TD)
        return x_TD + self._ffn(x_TD)

    def _ffn(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.feed_forward(self.ffn_norm(x_TD))


RunBlock = Callable[
    [TransformerBlock, torch.Tensor, Rotation, Documents, KVCache | None], torch.Tensor
]
"""How one block is called: gives the block's output `[T, D]` for its input `[T, D]`."""


def run_block(
    block: TransformerBlock,
    x_TD: torch.Tensor,
    rotation: Rotation,
    documents: Documents,
    cache: KVCache | None,
) -> torch.Tensor:
    """`block(x)`, computed again in the backward pass where the block keeps only its input."""
    if block.kept < Kept.FFN_INPUTS and torch.is_grad_enabled():
        return _recomputed(block, x_TD, rotation, documents, cache)
    return block(x_TD, rotation, documents, cache)


RunModel = Callable[
    [
        "Transformer",
        torch.Tensor,
        torch.Tensor,
        Documents,
        Supervision | None,
        KVCache | None,
        bool,
    ],
    torch.Tensor,
]
"""How the whole is called: the arguments and the result of `Transformer.forward`."""


class OutputHead(nn.Module):
    """The output matrix, sharded over the vocabulary; a tied model shares the embedding's. Rows
    that only fill up a share (`vocabulary_rows`) give no logit."""

    def __init__(self, weight: nn.Parameter, vocab_size: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = weight
        self.vocab_size = vocab_size
        self.columns = real_rows(vocab_size, weight.shape[0], tp)
        self.elements: int | None = None
        """Logits that the loss may hold at a time; None means its own number."""

    def forward(self, hidden_TD: torch.Tensor, labels: Supervision | None) -> torch.Tensor:
        """The summed loss of the supervised positions; without labels the logits `[T, V]`."""
        if labels is None:
            shards = linear(hidden_TD, self.weight)
            return gather_from_shards(shards, self.tp)[:, : self.vocab_size]
        hidden_ND = hidden_TD.index_select(0, labels.index_N)
        own = (self.tp, self.columns, self.elements)
        return summed_cross_entropy(hidden_ND, self.weight, labels.labels_N, *own)


class Transformer(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        tp: TensorParallel = SINGLE,
        checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.config = config
        self.run_block: RunBlock = run_block
        self.run_model: RunModel = run_model
        """Other functions of the same result may take the place of either, for speed."""
        self.frequencies = inverse_frequencies(config)
        self.rotation_factor = attention_factor(config)
        self.tok_embeddings = VocabParallelEmbedding(config.vocab_size, config.dim, tp)
        self.layers = nn.ModuleList(
            TransformerBlock(layer, config, tp, KEPT[checkpointing])
            for layer in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        weight = self.tok_embeddings.weight
        if not config.tied_embedding:
            weight = vocabulary_rows(config.vocab_size, config.dim, tp)
        self.output = OutputHead(weight, config.vocab_size, tp)

    @property
    def kept(self) -> list[Kept]:
        """What each block keeps for its backward pass."""
        return [block.kept for block in self.layers]  # type: ignore[misc]

    def keep(self, kept: Sequence[Kept]) -> None:
        """Have each block keep what is said for it."""
        for block, level in zip(self.layers, kept, strict=True):
            block.kept = level  # type: ignore[assignment]

    def forward(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision | None = None,
        cache: KVCache | None = None,
        last: bool = False,
    ) -> torch.Tensor:
        """The summed loss (a float32 scalar) where `labels` are given, else logits `[T, V]`, or
        `[N, V]` of the last token of each document only (`last`)."""
        return self.run_model(self, tokens_T, positions_T, documents, labels, cache, last)


def run_model(
    model: Transformer,
    tokens_T: torch.Tensor,
    positions_T: torch.Tensor,
    documents: Documents,
    labels: Supervision | None,
    cache: KVCache | None,
    last: bool,
) -> torch.Tensor:
    """What `Transformer.forward` says, operation by operation."""
    weight = model.tok_embeddings.weight
    x_TD = model.tok_embeddings(tokens_T).to(compute_dtype(weight))
    if model.frequencies.device != x_TD.device:  # once: each such copy waits for the device
        model.frequencies = model.frequencies.to(x_TD.device)
    rotation = Rotation(model.frequencies, positions_T, x_TD.dtype, model.rotation_factor)
    for block in model.layers:
        x_TD = model.run_block(block, x_TD, rotation, documents, cache)  # type: ignore[arg-type]
    if cache is not None:
        cache.advance()
    if last and documents.longest > 1:
        x_TD = x_TD.index_select(0, documents.ends_on(x_TD.device)[1:] - 1)
    return model.output(model.norm(x_TD), labels)
