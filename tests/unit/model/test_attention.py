"""Each path of attention against one plain reference with a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llama.model.attention import cached_attention, document_attention
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from tests.support.closeness import assert_close, sums_of
from tests.support.model_files import TINY

HEADS, HEAD_DIM, TOKENS = 4, 8, 12
LIMIT = sums_of(HEAD_DIM + 2 * TOKENS)
"""A score is a sum over the head, its softmax and the output are sums over the tokens."""


def case(tokens: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(tokens, HEADS, HEAD_DIM, generator=generator)
    k = torch.randn(tokens, kv_heads, HEAD_DIM, generator=generator)
    v = torch.randn(tokens, kv_heads, HEAD_DIM, generator=generator)
    return q, k, v


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: Sequence[int]
) -> torch.Tensor:
    """One query head at a time over all tokens, the forbidden ones masked; head h reads the kv head
    h // (H / K). Float64."""
    q, k, v = q.double(), k.double(), v.double()
    tokens = q.shape[0]
    allowed = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, end in pairwise(boundaries):
        allowed[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    out = torch.empty_like(q)
    for head in range(HEADS):
        shared = head // (HEADS // k.shape[1])
        scores = q[:, head] @ k[:, shared].t() / math.sqrt(HEAD_DIM)
        weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        out[:, head] = weights @ v[:, shared]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "boundaries",
    [(0, 12), (0, 4, 8, 12), (0, 1, 2, 3), (0, 5, 6, 12), (0, 1, 12)],
    ids=["one", "uniform", "single tokens", "mixed", "a lone token first"],
)
def test_documents_see_themselves_alone(boundaries: tuple[int, ...], kv_heads: int) -> None:
    q, k, v = (x.requires_grad_() for x in case(boundaries[-1], kv_heads))
    found = document_attention(q, k, v, Documents(boundaries))
    expected = reference(q, k, v, boundaries)
    assert_close(found, expected, LIMIT)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(found, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream.double())
    # All three together: with a lone token, those of q and k are zero but for rounding.
    ours, theirs = (torch.cat([g.flatten() for g in grads]) for grads in (ours, theirs))
    assert_close(ours, theirs, 2 * LIMIT)  # twice as many sums, one after another


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 5, 12], ids=["one token", "several", "the whole prompt"])
def test_cached_attention_is_the_last_rows_of_the_whole(new: int, kv_heads: int) -> None:
    """Of two sequences, of which the other is shorter and has as many new tokens, one or all."""
    others = {1: 4, 5: 9, 12: 7}[new]
    config = replace(TINY, n_layers=1, n_kv_heads=kv_heads, head_dim=HEAD_DIM)
    cache = KVCache(config, torch.float32, torch.device("cpu"))
    sequences = [case(TOKENS, kv_heads), [2 * x[:others] for x in case(TOKENS, kv_heads)]]
    counts = [new, min(new, others)]
    cache.open(2)

    def attend(parts: list[slice]) -> torch.Tensor:
        chosen = [[x[part] for x in xs] for xs, part in zip(sequences, parts, strict=True)]
        cache.begin([len(xs[0]) for xs in chosen])
        found = cached_attention(*map(torch.cat, zip(*chosen, strict=True)), cache, 0)
        cache.advance()
        return found

    if new < TOKENS:
        attend([slice(0, len(xs[0]) - n) for xs, n in zip(sequences, counts, strict=True)])
    found = attend([slice(len(xs[0]) - n, None) for xs, n in zip(sequences, counts, strict=True)])
    for (q, k, v), part in zip(sequences, found.split(counts), strict=True):
        assert_close(part, reference(q, k, v, (0, len(q)))[-len(part) :], LIMIT)


def test_documents_know_their_shape() -> None:
    uniform, mixed = Documents((0, 3, 6)), Documents((0, 2, 6))
    assert uniform.uniform and not mixed.uniform
    assert len(mixed) == 2 and mixed.longest == 4
    ends = mixed.ends_on(torch.device("cpu"))
    assert ends.dtype == torch.int32 and ends.tolist() == [0, 2, 6]
    assert mixed.ends_on(torch.device("cpu")) is ends
