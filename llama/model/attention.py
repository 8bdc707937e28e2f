"""Causal grouped-query attention within documents, and the layer around it.

Shapes: T tokens of all documents end to end, H query heads, K kv heads, E head_dim, D dim,
S tokens of one document, N documents; M sequences of a cache, L tokens held of them, G query heads
of each kv head; on a sharded model H and K are this rank's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama.kernels.paths import is_planned, on_cuda, run
from llama.model.config import ModelConfig
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.rope import Rotation
from llama.parallel.layers import ColumnParallelLinear, RowParallelLinear, each_of
from llama.parallel.mesh import TensorParallel

_HOPPER_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def document_attention(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """Attention of each token to its own document up to itself, `[T, H, E]`.

    Documents of one length are a plain batch; on CUDA in half precision others go through the
    variable-length kernel; elsewhere each document is attended by itself."""
    if documents.uniform:
        shape = (len(documents), documents.longest)
        return _batched(q_THE, k_TKE, v_TKE, shape)
    if on_cuda(q_THE) and q_THE.dtype != torch.float32:
        return _variable_length(q_THE, k_TKE, v_TKE, documents)
    # Split, not sliced: the backward of a slice writes a tensor of all tokens for each document.
    parts = zip(*(x.split(documents.lengths) for x in (q_THE, k_TKE, v_TKE)), strict=True)
    return torch.cat([_batched(q, k, v, (1, q.shape[0])) for q, k, v in parts])


def _variable_length(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, documents: Documents
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # slow to import, and for CUDA only

    groups = q_THE.shape[1] // k_TKE.shape[1]
    options: dict[str, Any] = {"window_size": (-1, 0)}
    if groups > 1 and "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch >= 2.12
        options["enable_gqa"] = True
    elif groups > 1:
        k_TKE, v_TKE = (x.repeat_interleave(groups, dim=1) for x in (k_TKE, v_TKE))
    ends, longest = documents.ends_on(q_THE.device), documents.longest
    return varlen_attn(q_THE, k_TKE, v_TKE, ends, ends, longest, longest, **options)  # type: ignore


def _batched(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Causal attention of `shape = (N, S)` documents of one length."""
    q_NHSE, k_NKSE, v_NKSE = (x.unflatten(0, shape).transpose(1, 2) for x in (q_THE, k_TKE, v_TKE))
    out_NHSE = _attend(q_NHSE, k_NKSE, v_NKSE, None, causal=True)
    return out_NHSE.transpose(1, 2).flatten(0, 1)


def cached_attention(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, cache: KVCache, layer: int
) -> torch.Tensor:
    """Attention of each new token to all that its sequence holds, up to itself, `[T, H, E]`; the
    new keys and values are put into `cache`."""
    k_MLKE, v_MLKE = cache.extend(layer, k_TKE, v_TKE)
    added = cache.added
    if added.begins:
        return document_attention(q_THE, k_TKE, v_TKE, added.documents)
    if added.one_each:
        return _next_tokens(q_THE, k_MLKE, v_MLKE, added.mask)
    sequences = zip(q_THE.split(added.documents.lengths), added.ends, k_MLKE, v_MLKE, strict=True)
    return torch.cat([_continued(q, k[:end], v[:end]) for q, end, k, v in sequences])


def _next_tokens(
    q_MHE: torch.Tensor, k_MLKE: torch.Tensor, v_MLKE: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One token of each sequence, `[M, H, E]`. The query heads that share a kv head are given as if
    they were tokens: the cache is then read as it is, and not copied for each of them."""
    q_MKGE = q_MHE.view(q_MHE.shape[0], k_MLKE.shape[2], -1, q_MHE.shape[2])
    k_MKLE, v_MKLE = k_MLKE.transpose(1, 2), v_MLKE.transpose(1, 2)
    return _attend(q_MKGE, k_MKLE, v_MKLE, mask, causal=False).flatten(1, 2)


def _continued(q_SHE: torch.Tensor, k_LKE: torch.Tensor, v_LKE: torch.Tensor) -> torch.Tensor:
    """Attention of the last S of L tokens of one sequence, `[S, H, E]`."""
    new, held = q_SHE.shape[0], k_LKE.shape[0]
    mask = torch.ones(new, held, dtype=torch.bool, device=q_SHE.device).tril(held - new)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_SHE, k_LKE, v_LKE))
    return _attend(q, k, v, mask, causal=False).squeeze(0).transpose(0, 1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and (not on_cuda(q) or q.dtype == torch.float32):
        # On CPU the flash kernel, and on CUDA the memory-efficient one, which is that of float32,
        # take equal head counts only; with `enable_gqa` scores of every pair of tokens are kept.
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        groups = 1
    with _kernels(q):
        return run(
            F.scaled_dot_product_attention,
            *(q, k, v),
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=groups > 1,
        )


def _kernels(q: torch.Tensor) -> AbstractContextManager[Any]:
    """On Hopper cuDNN's kernel comes first for full rows: torch's own flash kernel is a generation
    older. cuDNN plans anew for each length, which documents of all lengths would not repay."""
    if is_planned():  # which kernel runs makes no difference to what is kept
        return nullcontext()
    full = q.is_cuda and q.dtype != torch.float32 and q.shape[-2] % 256 == 0
    if full and torch.cuda.get_device_capability() >= (9, 0):
        return sdpa_kernel(_HOPPER_ORDER, set_priority=True)
    return nullcontext()


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]
"""How q, k and v are attended: the arguments and the result of `document_attention`."""


class Attention(nn.Module):
    """Projections, rotation, attention, projection back."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.n_heads = tp.divide(config.n_heads, "the query heads")
        self.n_kv_heads = tp.divide(config.n_kv_heads, "the kv heads")
        self.head_dim = config.head_dim
        bias = config.attention_bias
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = ColumnParallelLinear(config.dim, q_dim, bias, tp)
        self.wk = ColumnParallelLinear(config.dim, kv_dim, bias, tp)
        self.wv = ColumnParallelLinear(config.dim, kv_dim, bias, tp)
        self.wo = RowParallelLinear(q_dim, config.dim, bias, tp)
        self.attend: Attend = document_attention
        """Another function of the same result may take its place."""

    def forward(
        self,
        x_TD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        heads = x_TD.shape[0], self.n_heads, self.head_dim
        kv_heads = x_TD.shape[0], self.n_kv_heads, self.head_dim
        q, k, v = each_of((self.wq, self.wk, self.wv), x_TD, self.tp)
        q_THE, k_TKE, v_TKE = rotation(q.view(heads)), rotation(k.view(kv_heads)), v.view(kv_heads)
        del q, k, v
        if cache is None:
            out_THE = self.attend(q_THE, k_TKE, v_TKE, documents)
        else:
            out_THE = cached_attention(q_THE, k_TKE, v_TKE, cache, layer)
        return self.wo(out_THE.flatten(1))
