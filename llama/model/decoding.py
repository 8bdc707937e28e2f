"""Writing text one token at a time with a KV cache.

Top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llama.kernels.products import compute_dtype
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: at temperature 0 the likeliest, else drawn from the smallest
    set of tokens that holds `top_p` of the probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


Agreed = Callable[[int], int]
"""This rank's choice of a token to the one that all ranks take."""


def own(token: int) -> int:
    """The choice of a model that nobody else has a part of."""
    return token


@torch.no_grad()
def decode(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sampling: Sampling,
    agreed: Agreed = own,
) -> Iterator[int]:
    """Yield tokens that follow `prompt` (at least one token), up to `max_new_tokens` or a stop
    token, which is not yielded. The prompt is read once; each token then costs one position.

    Where a model is spread over ranks, all are in every forward pass. Their logits may differ by
    rounding, and with them a choice or the end: `agreed` has all take the same."""
    parameter = model.tok_embeddings.weight
    device = parameter.device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    dtype = compute_dtype(parameter)
    heads = model.config.n_kv_heads // model.tok_embeddings.tp.size  # this rank's
    cache = KVCache(model.config, len(prompt) + max_new_tokens, dtype, device, heads)
    new = torch.tensor(list(prompt), dtype=torch.int64, device=device)
    for _ in range(max_new_tokens):
        positions = torch.arange(cache.length, cache.length + len(new), device=device)
        logits = model(new, positions, Documents((0, len(new))), cache=cache, last=True)
        token = agreed(choose(logits[-1].float(), sampling, generator))
        if token in stop_ids:
            return
        yield token
        new = torch.tensor([token], dtype=torch.int64, device=device)


def decode_without_cache(model: Transformer, prompt: Sequence[int], tokens: int) -> list[int]:
    """The plain reference for `decode` at temperature 0: every token reads the whole text again."""
    ids = list(prompt)
    device = model.tok_embeddings.weight.device
    with torch.no_grad():
        for _ in range(tokens):
            text = torch.tensor(ids, device=device)
            positions = torch.arange(len(ids), device=device)
            logits = model(text, positions, Documents((0, len(ids))), last=True)
            ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def choose(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from float32 logits."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    ordered, index = (logits_V / sampling.temperature).softmax(dim=-1).sort(descending=True)
    # A token stays if those before it do not yet hold top_p; the likeliest always does.
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.where((before < sampling.top_p), torch.zeros_like(ordered))
    return int(index[torch.multinomial(kept, 1, generator=generator)])
