"""Arguments for every kernel that has a form in Triton, to hold the two against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from llama.kernels.eight_bits import quantised_rows
from llama.kernels.four_bit_codes import BLOCK, GROUP, LEVELS, values_on
from tests.support.eight_bits import CODES

P = 0.2
EPS = 1e-5


def calls(
    dtype: torch.dtype,
    device: torch.device,
    tokens: int = 7,
    width: int = 96,
    vocabulary: int = 5000,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Name of a kernel and arguments of one call."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, update, grad = (random(tokens, width) for _ in range(3))
    weight = random(width)
    seed = torch.tensor([2**61 + 12345, 3], device=device)  # from a third row on
    scale = (x.float().square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
    yield "rms_norm", (x, weight, EPS)
    yield "rms_norm_backward", (grad, x, weight, scale)
    for shares in ((update,), (update, grad)):
        out, scales = torch.empty_like(x), torch.empty_like(scale)
        yield "added", (x, shares, out)
        yield "add_norm", (x, shares, weight, EPS, (out, torch.empty_like(x), scales))
        yield "norm_backward", (update, shares, x, weight, EPS, out)
    yield "dropped", (x, seed, P, (5, width))
    yield "swiglu", (x, update)
    yield "swiglu_backward", (grad, x, update)
    q, k = random(tokens, 6, 20), random(2, tokens, 20).transpose(0, 1)
    cos, sin = random(tokens, 1, 20), random(tokens, 1, 20)
    yield "rotate", (k, cos, sin)
    yield "rotate_both", (q, k, cos, sin)
    yield from _paths(random, seed, tokens, width)
    labels = torch.randint(-1, vocabulary, (tokens, 1), generator=generator).to(device)
    labels[:2] = torch.tensor([[-1], [vocabulary - 1]], device=device)
    logits = 3 * random(tokens, vocabulary)
    yield "losses_and_gradient", (logits, labels)
    yield "shard_statistics", (logits, labels)
    yield "shard_statistics", (logits[:, 1:], labels - vocabulary // 2)
    normaliser = logits.float().logsumexp(dim=1, keepdim=True)
    normaliser[0] = torch.inf
    yield "shard_gradient", (logits, labels, normaliser)
    yield "shard_gradient", (logits[:, 1:], labels - vocabulary // 2, normaliser)
    yield from _of_eight_bits(x, random(tokens + 5, width + 5), weight.float())
    yield from _of_four_bits(dtype, device, tokens * width // BLOCK + 1, generator)


def _of_four_bits(
    dtype: torch.dtype, device: torch.device, blocks: int, generator: torch.Generator
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Of so many blocks, and of as many as have more than one scale."""
    for count in (blocks, GROUP + 3):
        codes, absmax = (
            torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).to(device)
            for size in (count * BLOCK // 2, count)
        )
        scales = torch.rand(-(-count // GROUP), generator=generator).to(device)
        mean = torch.rand((), generator=generator).to(device)
        levels = torch.linspace(-1.0, 1.0, LEVELS, device=device)
        given = codes, absmax, scales, mean, levels, values_on(device)
        yield "from_four_bits", (*given, dtype)


def _of_eight_bits(
    x: torch.Tensor, wider: torch.Tensor, before: torch.Tensor
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Of a width that fills tiles, and of another."""
    for kind in CODES:
        yield "quantised_rows", (x, None, kind)
        yield "quantised_rows", (x, before, kind)
        yield "quantised_rows", (wider[:, 1:], None, kind)
        yield "turned", (quantised_rows(wider, None, kind)[0],)
        yield "turned", (quantised_rows(wider, None, kind)[0][:, :-3].contiguous(),)
    for rows in (x, wider):
        # Of sums that float16 holds: a row meets its own codes.
        codes, scales = quantised_rows(rows / rows.shape[1] ** 0.5, None, torch.int8)
        weight = torch.cat([codes, codes.flip(1)])[:, : rows.shape[1]].contiguous()
        after = torch.linspace(0.1, 2.0, len(weight), device=rows.device)
        yield "grouped_product", (codes, scales, weight, None, rows.dtype)
        yield "grouped_product", (codes, scales, weight, after, rows.dtype)


def _paths(
    random: Callable[..., torch.Tensor], seed: torch.Tensor, tokens: int, width: int
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls of `llama/fused/paths.py`: with one adapter and more, of several ranks, with dropout
    and without."""
    x, grad, up = (random(tokens, width) for _ in range(3))
    norm = (x.float().square().mean(dim=-1, keepdim=True) + EPS).rsqrt(), random(width)
    for count, rank, p in ((1, 4, P), (2, 16, 0.0), (3, 20, P), (1, 40, P)):
        drawn = (seed,) if p else ()
        a = tuple(random(rank, width) / width**0.5 for _ in range(count))
        b = tuple(random(width, rank) for _ in range(count))
        hidden = tuple(random(tokens, rank) for _ in range(count))
        yield "hidden_each", (x, a, drawn, p)
        yield "add_with_path_", (up, x, (hidden[0], b[0]), 0.5)
        grads = tuple(random(tokens, width // (n + 1)) for n in range(count))
        of_b = tuple(random(grad.shape[1], rank) for grad in grads)
        yield "output_gradients", (grads, hidden, of_b, (0.5, 2.0, 1.0)[:count])
        yield "input_gradients_", (x, (up,), norm, hidden, a, drawn, p)
        yield "input_gradients_", (x, (up, grad, x)[:count], (), hidden, a, drawn, p)
        yield "input_gradients_", (x, (), (), hidden, a, drawn, p)
        yield "input_gradients_", (x, (up,), norm, hidden, a, drawn, p, 5)
        both = (hidden[0], b[0]), (hidden[-1], b[-1]) if count > 1 else ()
        scales = 0.5, 2.0
        for paths, down in ((both, ()), (((), both[0]), a[:1]), (((), ()), a[:1]), (both, a[:1])):
            masks = drawn if down else ()
            yield "gated", (x, up, paths, scales, down, masks, p)
            down = (hidden[0], *down) if down else ()
            yield "gated_backward_", (grad, x, up, paths, scales, down, masks, p)
        q, k = random(tokens, 6, 20), random(2, tokens, 20).transpose(0, 1)
        angles = random(tokens, 1, 20), random(tokens, 1, 20)
        paths = (hidden[0], random(120, rank)), (hidden[-1], random(40, rank))
        yield "rotate_both", (q, k, *angles, paths, scales)
    # Of unlike ranks, and of more layers than a kernel takes; rows that lie apart, or upright:
    grads = x[:, :-3], up[:, 16:], grad, random(width, tokens).t()
    for ranks in ((4, 20), (16,) * 4):
        hidden = tuple(random(tokens, rank) for rank in ranks)
        b = tuple(random(g.shape[1], rank) for g, rank in zip(grads, ranks, strict=False))
        yield "output_gradients", (grads[: len(ranks)], hidden, b, (0.5,) * len(ranks))


def apart(found: Any, expected: Any) -> float:
    """The largest relative difference of the tensors that two calls gave."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
    )


def own(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors, for a function that writes to them; laid out as they are."""
    return tuple(
        arg.clone()
        if isinstance(arg, torch.Tensor)
        else own(arg)
        if isinstance(arg, tuple)
        else arg
        for arg in args
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, tuple):
        for inner in value:
            yield from _tensors(inner)
    else:
        yield value
