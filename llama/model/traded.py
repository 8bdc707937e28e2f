"""Attention of a rank that has a share of each micro-batch's tokens.

Shapes: T tokens of the micro-batch, t of this rank's share, N ranks, H query heads, K kv heads, E
head_dim.
"""

from __future__ import annotations

import torch

from llama.model.attention import document_attention
from llama.model.documents import Documents
from llama.parallel.sequence import SequenceParallel


def traded_attention(
    sequence: SequenceParallel,
    q_tHE: torch.Tensor,
    k_tKE: torch.Tensor,
    v_tKE: torch.Tensor,
    documents: Documents,
) -> torch.Tensor:
    """`document_attention` of all tokens for this rank's share of the heads, and of it what belongs
    to this rank's tokens, `[t, H, E]`. `documents` are those of the whole micro-batch. N divides H,
    and it divides K or K divides it: then each kv head goes to the ranks of its query heads."""
    tokens, (heads, width), ranks = documents.boundaries[-1], q_tHE.shape[1:], sequence.size
    if ranks > k_tKE.shape[1]:
        times = ranks // k_tKE.shape[1]
        k_tKE, v_tKE = (x.repeat_interleave(times, dim=1) for x in (k_tKE, v_tKE))
    kv_heads = k_tKE.shape[1]
    # One message: of every rank's heads q, k and v side by side.
    each = [x.unflatten(1, (ranks, -1)) for x in (q_tHE, k_tKE, v_tKE)]
    all_TE = sequence.all_tokens(torch.cat(each, dim=2).flatten(1), tokens).unflatten(
        1, (-1, width)
    )
    q_THE, k_TKE, v_TKE = all_TE.split([heads // ranks, *[kv_heads // ranks] * 2], dim=1)
    out_THE = document_attention(q_THE, k_TKE, v_TKE, documents)
    return sequence.own_tokens(out_THE.flatten(1), tokens).unflatten(1, (heads, width))
