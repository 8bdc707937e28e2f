"""Which blocks of a model run as one fused function, and giving them that form.

The fused form repeats the arithmetic of the types listed here and of no others. A block that holds
anything else (a subclass of a part, another adapter, a weight held otherwise) is called as it is,
and a note says why.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llama.base.kinds import KINDS
from llama.fused.block import fused_block, linears
from llama.fused.offload import HostInputs
from llama.kernels.products import compute_dtype
from llama.model.attention import Attention, document_attention
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.rope import Rotation
from llama.model.traded import Traded
from llama.model.transformer import FeedForward, RMSNorm, Transformer, TransformerBlock, run_block
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear

PARTS = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "attention_norm": RMSNorm,
    "ffn_norm": RMSNorm,
}
"""Name to type of each part of a block."""
LINEARS = (ColumnParallelLinear, RowParallelLinear)


def install(model: Transformer) -> str | None:
    """Have every block of `model` that is covered run fused in training. Call it once adapters are
    attached and DeepSpeed has the model; every rank must. A note where some are not covered."""
    reasons = {block: uncovered(block) for block in model.layers}
    model.run_block = RunFused(frozenset(b for b, reason in reasons.items() if reason is None))
    if is_installed(model):
        weight = model.tok_embeddings.weight
        shape = model.config.dim, compute_dtype(weight)
        model.tok_embeddings.tp.sums.show(weight.device, *shape)
    plain = [reason for reason in reasons.values() if reason]
    if not plain:
        return None
    why = "; ".join(dict.fromkeys(plain))
    return f"{len(plain)} of {len(reasons)} blocks are not run as one fused function: {why}"


def is_installed(model: Transformer) -> bool:
    """Whether blocks of `model` run fused in training."""
    return isinstance(model.run_block, RunFused) and bool(model.run_block.covered)


def uncovered(block: nn.Module) -> str | None:
    """Why `block` cannot run fused, or None if it can."""
    if type(block) is not TransformerBlock:
        return f"a block is a {type(block).__name__}"
    for name, kind in PARTS.items():
        if type(part := getattr(block, name)) is not kind:
            return f"{name} is a {type(part).__name__}"
    attend = block.attention.attend
    if attend is not document_attention and type(attend) is not Traded:
        return f"its attention is a {type(attend).__name__}"
    for layer, name in linears(block):
        if reason := _uncovered_linear(layer):
            return f"{name} {reason}"
    dropouts = {low_rank.dropout for low_rank in map(_low_rank, linears(block)) if low_rank}
    return "its adapters drop at different rates" if len(dropouts) > 1 else None


def _low_rank(layer_and_name: tuple[Any, str]) -> Any:
    layer, _ = layer_and_name
    return layer.lora.low_rank() if layer.lora is not None else None


def _uncovered_linear(layer: Any) -> str | None:
    if type(layer) not in LINEARS:
        return f"is a {type(layer).__name__}"
    if layer.bias is not None:
        return "has a bias"
    if layer.weight.requires_grad:
        return "is trained itself"
    if layer.kind not in KINDS.values():
        return f"is held as {layer.kind.__name__}"
    if hasattr(layer.weight, "ds_id"):  # ZeRO-3 gathers it only within its own module's call
        return "is partitioned by ZeRO-3"
    if layer.lora is not None and layer.lora.low_rank() is None:
        return f"has an adapter of another kind, {type(layer.lora).__name__}"
    return None


class RunFused:
    """Calls the blocks of `covered` fused and the others as they are."""

    def __init__(self, covered: frozenset[nn.Module]) -> None:
        self.covered = covered
        self.host = HostInputs()

    def __call__(
        self,
        block: TransformerBlock,
        x_TD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
    ) -> torch.Tensor:
        """`block(x)`. Fused only in training, and where nothing watches the outputs of the block's
        parts, which the fused form does not have."""
        training = block.training and torch.is_grad_enabled() and cache is None
        if training and block in self.covered and not block._forward_hooks:
            return fused_block(block, x_TD, rotation, documents, block.kept, self.host)
        return run_block(block, x_TD, rotation, documents, cache)
